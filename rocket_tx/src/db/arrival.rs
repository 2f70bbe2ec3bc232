//! Where a request came from, noted before anything can say otherwise.
//!
//! Any request fairing may give a request another remote address, and services behind proxies do.
//! Rocket does not keep the first one. So the fairings of this library note it, each of them: the
//! first that runs is the one that counts.

use std::net::SocketAddr;

use rocket::Request;

/// The address at the other end of a request's connection.
pub(crate) struct Arrival(Option<SocketAddr>);

impl Arrival {
    /// Called by request fairings. A later call changes nothing.
    pub(crate) fn note(request: &Request<'_>) {
        Self::of(request);
    }

    /// `None` for a test's local client, which has no connection.
    pub(crate) fn address(request: &Request<'_>) -> Option<SocketAddr> {
        Self::of(request).0
    }

    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(|| Self(request.remote()))
    }
}
