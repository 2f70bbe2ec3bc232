//! Making a response another one, late: what of it stays, and what goes.

use rocket::http::Header;
use rocket::{Request, Response};

use crate::tx::failure::Problem;
use crate::tx::panics::shielded;
use crate::tx::verdict::Outcome;

/// The header that tells what became of the request's transactions.
pub(super) const OUTCOME: &str = "Transaction-Outcome";

/// Makes the response a problem. Keeps the headers that fairings set.
pub(in crate::tx) fn replace<'r>(
    request: &'r Request<'_>,
    response: &mut Response<'r>,
    problem: Problem,
    outcome: Outcome,
) {
    strip(response);
    problem.with_outcome(outcome).write(request, response);
    response.set_header(Header::new(OUTCOME, outcome.as_str()));
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

/// Drops upgrade handlers, and nothing else. Rocket answers 101, whatever the status is, where the
/// client asks for a protocol that the response has a handler for.
pub(super) fn drop_upgrades(request: &Request<'_>, response: &mut Response<'_>) {
    if !request.headers().contains("Upgrade") {
        return;
    }
    let old = std::mem::take(response);
    // Merging takes status, headers and body.
    shielded("an upgrade handler", || response.merge(old));
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
