//! The problems that clients receive.

use std::time::Duration;

use rocket::http::Status;
use rocket::serde::json::serde_json::json;
use rocket_tx::{Error, Problem};

use crate::key::BadKey;

/// When a client may ask again about a request that is in flight.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) fn missing() -> Problem {
    Problem::new(
        Status::BadRequest,
        "idempotency-key-missing",
        "This request needs the header `Idempotency-Key`. Send a new random value with each request, \
         and the same value when you repeat one.",
    )
}

pub(crate) fn bad(error: &BadKey) -> Problem {
    match error {
        BadKey::Repeated => Problem::new(
            Status::BadRequest,
            "idempotency-key-repeated",
            "The request has the header `Idempotency-Key` more than once. Send it once.",
        ),
        BadKey::Malformed => Problem::new(
            Status::BadRequest,
            "idempotency-key-malformed",
            "`Idempotency-Key` must be 1 to 255 visible ASCII characters, with or without double \
             quotes. Without quotes, it must not contain a comma, a semicolon or a backslash.",
        ),
    }
}

pub(crate) fn other_payload() -> Error {
    refusal(Problem::new(
        Status::UnprocessableEntity,
        "idempotency-key-reused",
        "Another request was sent with this `Idempotency-Key`, with other content. Nothing was \
         changed. Send a new key with a new request.",
    ))
}

pub(crate) fn in_flight() -> Error {
    let problem = Problem::new(
        Status::Conflict,
        "idempotency-key-in-flight",
        "A request with this `Idempotency-Key` is still being served. Send this one again later; \
         it is not done twice.",
    );
    refusal(problem.retry_after(RETRY_AFTER))
}

/// The earlier request was committed, but its response cannot be sent again. `status` is `None` if
/// it was committed outside of settlement.
pub(crate) fn not_stored(status: Option<i32>, location: Option<&str>) -> Problem {
    let detail = match status {
        Some(_) => {
            "The request with this `Idempotency-Key` was done. Its response is not stored, because \
             it was too large or a stream. `original` has its status and its `Location`."
        }
        None => {
            "The request with this `Idempotency-Key` was committed, but not by the library, so its \
             response is not stored. Check what it has done."
        }
    };
    let problem = Problem::new(Status::Conflict, "idempotency-response-not-stored", detail);
    problem.with(
        "original",
        json!({ "status": status, "location": location }),
    )
}

fn refusal(problem: Problem) -> Error {
    Error::Problem(Box::new(problem))
}
