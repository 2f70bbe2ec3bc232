//! Replaces a finished response by a problem, and decides which headers are kept.

use rocket::http::Header;
use rocket::{Request, Response};

use crate::tx::failure::Problem;
use crate::tx::panics::shielded;
use crate::tx::verdict::Outcome;

/// The header with the outcome of the request's transactions.
pub(super) const OUTCOME: &str = "Transaction-Outcome";

/// Replaces the response by a problem. Headers that describe neither the old body nor a success are
/// kept, for example security headers that a fairing has set.
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

/// Drops the body, the upgrade handlers, and the headers that describe the body or a success. Keeps
/// the status.
pub(super) fn strip(response: &mut Response<'_>) {
    let mut bare = Response::build().status(response.status()).finalize();
    for header in response.headers().iter() {
        if is_kept(header.name().as_str()) {
            let (name, value) = (header.name().to_string(), header.value().to_owned());
            bare.adjoin_header(Header::new(name, value));
        }
    }
    let old = std::mem::replace(response, bare);
    shielded("the body of a response", || drop(old));
}

/// Drops the upgrade handlers, and nothing else.
///
/// If the client requests a protocol for which the response has an upgrade handler, Rocket sends
/// 101, whatever the status of the response is.
pub(super) fn drop_upgrades(request: &Request<'_>, response: &mut Response<'_>) {
    if !request.headers().contains("Upgrade") {
        return;
    }
    let old = std::mem::take(response);
    // `merge` moves status, headers and body back, but no upgrade handlers.
    shielded("an upgrade handler", || response.merge(old));
}

/// Returns `true` if a replaced response keeps the header.
fn is_kept(name: &str) -> bool {
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
    let describes_content =
        name.starts_with("content-") && !name.starts_with("content-security-policy");
    !describes_content && !DROPPED.contains(&name.as_str())
}
