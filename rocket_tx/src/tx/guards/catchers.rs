//! Catchers that respond with the same problem format as guards and handlers.

use rocket::http::Status;
use rocket::{Catcher, Request, catch};

use crate::tx::failure::Problem;
use crate::tx::registry::Outstanding;

/// Returns catchers that respond to every error of Rocket with `application/problem+json`. If a
/// guard of this library failed, or a guard of the service by [`Error::into_outcome`], the response
/// contains the guard's own error.
///
/// [`Error::into_outcome`]: crate::Error::into_outcome
///
/// ```no_run
/// let rocket = rocket::build().register("/", rocket_tx::problem_catchers());
/// ```
pub fn problem_catchers() -> Vec<Catcher> {
    rocket::catchers![default_problem]
}

#[catch(default)]
fn default_problem(status: Status, request: &Request<'_>) -> Problem {
    let failure = Outstanding::used_by(request).and_then(|outstanding| outstanding.failure());
    let mut problems = [failure, Problem::kept_for_catcher(request)]
        .into_iter()
        .flatten();
    let problem = problems.find(|problem| problem.status() == status);
    problem.unwrap_or_else(|| Problem::new(status, kind(status), explain(status)))
}

fn kind(status: Status) -> &'static str {
    match status.code {
        400 => "bad-request",
        401 => "unauthorized",
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
        401 => "The request needs valid credentials.",
        403 => "The request is not allowed.",
        404 => "There is nothing at this address.",
        413 => "The body is larger than the size limit.",
        415 => "Send the body as `Content-Type: application/json`.",
        422 => "The request is well-formed, but its content is not valid.",
        code if (400..500).contains(&code) => "The request cannot be served in this form.",
        503 => "The service cannot serve the request now; retry.",
        _ => "The service failed; its log contains the id of this request.",
    }
}
