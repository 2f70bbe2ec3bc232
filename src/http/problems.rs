//! The failures of operations, as the contract describes them: each once.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response};

use super::endpoints::operations_of;

/// Each status of a problem, its name in the contract, and when it is sent.
#[rustfmt::skip]
const PROBLEMS: [(u16, &str, &str); 13] = [
    (400, "BadRequest", "The body is not JSON, or ended too soon."),
    (403, "Forbidden",
        "The address is for operators; or the request asks for a fault, and failure injection is off."),
    (404, "NotFound", "There is no such thing."),
    (405, "MethodNotAllowed", "The address does not have this method."),
    (409, "Conflict", "It exists already; or somebody else was first; or a constraint refuses it."),
    (412, "PreconditionFailed", "It is of another version than `If-Match` says."),
    (413, "TooLarge", "The body is over the size limit."),
    (415, "UnsupportedMediaType", "The body is not `application/json`."),
    (422, "Validation", "What was sent breaks a rule. `detail` names it."),
    (500, "Internal", "The service failed. Its log names the request's id."),
    (502, "Downstream", "The other service refused, or cannot be reached. Nothing was changed."),
    (503, "Unavailable",
        "The service is busy, or a database cannot be reached. Nothing was changed; retry."),
    (504, "DownstreamTimeout", "The other service did not answer in time. Nothing was changed."),
];

/// The operation can fail with this status.
pub(crate) enum Fails<const STATUS: u16> {}

impl<const STATUS: u16> IntoResponses for Fails<STATUS> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        const { assert!(is_listed(STATUS), "it is not one of `PROBLEMS`") }
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

/// The operation takes a body, which can be wrong.
pub(crate) enum BadBody {}

impl IntoResponses for BadBody {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[400, 413, 415, 422])
    }
}

/// References to the problems of these statuses.
fn problems(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    PROBLEMS
        .iter()
        .filter(|(status, ..)| statuses.contains(status))
        .map(|(status, name, _)| {
            let problem = Ref::from_response_name(*name);
            (status.to_string(), RefOr::Ref(problem))
        })
        .collect()
}

/// Adds the failures that every operation has, and the problems that all references refer to.
pub(crate) fn describe_problems(contract: &mut OpenApi) {
    for (_, operation) in operations_of(contract) {
        let responses = &mut operation.responses.responses;
        responses.extend(problems(&[403, 422, 500]));
    }
    let components = contract.components.get_or_insert_default();
    for (_, name, when) in PROBLEMS {
        let schema = Ref::from_schema_name("Problem");
        let problem = Response::builder()
            .description(when)
            .content("application/problem+json", Content::new(Some(schema)));
        let problem = RefOr::T(problem.build());
        components.responses.insert(name.to_owned(), problem);
    }
}
