//! Making a response another one, late: what of it stays, and what goes.

use rocket::http::Header;
use rocket::{Request, Response};

use super::problem::Problem;
use super::settle::shielded;
use super::verdict::Outcome;

/// Makes the response a problem. Keeps the headers that fairings set.
pub(super) fn replace<'r>(
    request: &'r Request<'_>,
    response: &mut Response<'r>,
    problem: Problem,
    outcome: Outcome,
) {
    strip(response);
    problem.with_outcome(outcome).write(request, response);
    response.set_header(Header::new("Transaction-Outcome", outcome.as_str()));
}

/// Drops body, upgrade handlers, and the headers that speak of them or of a success.
pub(super) fn strip(response: &mut Response<'_>) {
    let mut bare = Response::build().status(response.status()).finalize();
    for header in response.headers().iter() {
        if survives(header.name().as_str()) {
            let (name, value) = (header.name().to_string(), header.value().to_owned());
            bare.adjoin_header(Header::new(name, value));
        }
    }
    let old = std::mem::replace(response, bare);
    shielded("the body of a response", || drop(old));
}

fn survives(name: &str) -> bool {
    const DROPPED: [&str; 11] = [
        "set-cookie",
        "location",
        "etag",
        "last-modified",
        "cache-control",
        "expires",
        "accept-ranges",
        "transfer-encoding",
        "retry-after",
        "refresh",
        "link",
    ];

    let name = name.to_ascii_lowercase();
    let of_content = name.starts_with("content-") && !name.starts_with("content-security-policy");
    !of_content && !DROPPED.contains(&name.as_str())
}
