//! The failures of operations in the contract. Each is described once, and operations refer to it.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response};

use super::endpoints::operations_of;

/// The statuses of problems. Each has its name in the contract, its description, and the types of
/// problem that a client may want to distinguish.
#[rustfmt::skip]
const PROBLEMS: [(u16, &str, &str, &[&str]); 13] = [
    (400, "BadRequest",
        "The body is not JSON, or it ended too early; or `Idempotency-Key` is not valid.",
        &["bad-request", "idempotency-key-malformed", "idempotency-key-repeated"]),
    (403, "Forbidden",
        "Only operators may use this path; or the request has a fault, and failure injection is off.",
        &["operators-only", "faults-off"]),
    (404, "NotFound", "The path or the id does not exist.",
        &["not-found", "no-such-todo", "no-such-lease"]),
    (405, "MethodNotAllowed", "The path does not support this method.", &["method-not-allowed"]),
    (409, "Conflict",
        "It exists already, another request changed it first, a constraint refuses the change, a \
         request with the same `Idempotency-Key` is in flight, or it was done and its response is not \
         stored.",
        &["exists", "conflict", "constraint", "idempotency-key-in-flight", "idempotency-response-not-stored"]),
    (412, "PreconditionFailed", "The version of the aggregate does not match `If-Match`.", &["version"]),
    (413, "TooLarge", "The body is larger than the limit.", &["too-large"]),
    (415, "UnsupportedMediaType", "The body is not `application/json`.", &["unsupported-media-type"]),
    (422, "Validation",
        "The request breaks a rule, which `detail` names; or its `Idempotency-Key` belongs to a request \
         with other content.",
        &["validation", "idempotency-key-reused"]),
    (500, "Internal", "The service failed. Its log has details under the request's id.",
        &["unknown", "partial", "cannot-prepare", "not-atomic", "internal"]),
    (502, "Downstream",
        "The downstream service refused, or it cannot be reached. Nothing was changed.",
        &["downstream"]),
    (503, "Unavailable",
        "The service is busy, or a database cannot be reached. Nothing was changed; retry.",
        &["busy", "unreachable", "connection-lost", "decided-to-abort", "handler-timeout", "settle-timeout"]),
    (504, "DownstreamTimeout",
        "The downstream service did not respond in time. Nothing was changed.",
        &["downstream"]),
];

/// A response of an operation that can fail with this status.
pub(crate) enum Fails<const STATUS: u16> {}

impl<const STATUS: u16> IntoResponses for Fails<STATUS> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        const { assert!(is_listed(STATUS), "the status is not one of `PROBLEMS`") }
        problems(&[STATUS])
    }
}

const fn is_listed(status: u16) -> bool {
    let mut next = 0;
    while next < PROBLEMS.len() {
        if PROBLEMS[next].0 == status {
            return true;
        }
        next += 1;
    }
    false
}

/// The responses of an operation to a wrong body.
pub(crate) enum BadBody {}

impl IntoResponses for BadBody {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[400, 413, 415, 422])
    }
}

/// Returns references to the problems with these statuses.
pub(crate) fn problems(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    PROBLEMS
        .iter()
        .filter(|(status, ..)| statuses.contains(status))
        .map(|(status, name, ..)| {
            let problem = Ref::from_response_name(*name);
            (status.to_string(), RefOr::Ref(problem))
        })
        .collect()
}

/// Adds the failures that every operation has, and the problems that the operations refer to.
pub(crate) fn describe_problems(contract: &mut OpenApi) {
    for (_, operation) in operations_of(contract) {
        let responses = &mut operation.responses.responses;
        responses.extend(problems(&[403, 422, 500]));
    }
    let components = contract.components.get_or_insert_default();
    for (_, name, when, types) in PROBLEMS {
        let schema = Ref::from_schema_name("Problem");
        let types: Vec<String> = types
            .iter()
            .map(|kind| format!("`urn:rocket_tx:problem:{kind}`"))
            .collect();
        let problem = Response::builder()
            .description(format!("{when} The `type` may be {}.", types.join(", ")))
            .content("application/problem+json", Content::new(Some(schema)));
        let problem = RefOr::T(problem.build());
        components.responses.insert(name.to_owned(), problem);
    }
}
