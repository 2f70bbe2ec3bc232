//! Catchers that answer as guards and handlers do.

use rocket::http::Status;
use rocket::{Catcher, Request, catch};

use crate::tx::failure::Problem;
use crate::tx::registry::Outstanding;

/// Catchers that answer every error of Rocket's with problem+json; a guard that failed tells its
/// own reason.
///
/// ```no_run
/// let rocket = rocket::build().register("/", rocket_tx::problem_catchers());
/// ```
pub fn problem_catchers() -> Vec<Catcher> {
    rocket::catchers![default_problem]
}

#[catch(default)]
fn default_problem(status: Status, request: &Request<'_>) -> Problem {
    let failure = Outstanding::used_by(request)
        .and_then(|outstanding| outstanding.failure())
        .filter(|problem| problem.status() == status);
    failure.unwrap_or_else(|| Problem::new(status, kind(status), explain(status)))
}

fn kind(status: Status) -> &'static str {
    match status.code {
        400 => "bad-request",
        403 => "forbidden",
        404 => "not-found",
        405 => "method-not-allowed",
        406 => "not-acceptable",
        413 => "too-large",
        415 => "unsupported-media-type",
        422 => "validation",
        code if (400..500).contains(&code) => "client-error",
        503 => "unavailable",
        _ => "internal",
    }
}

fn explain(status: Status) -> &'static str {
    match status.code {
        400 => "The request could not be understood; check its syntax.",
        404 => "There is nothing at this address.",
        413 => "The body is over the size limit.",
        415 => "Send the body as `Content-Type: application/json`.",
        422 => "The request was understood, but its content breaks a rule.",
        code if (400..500).contains(&code) => "The request cannot be answered as it stands.",
        503 => "The service cannot answer now; retry.",
        _ => "The service failed; its log names this request's id.",
    }
}
