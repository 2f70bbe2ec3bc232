//! The remote address of a request, recorded before another fairing can change it.
//!
//! Any request fairing may change the remote address, and services behind proxies do so. Rocket
//! does not keep the original address. Therefore every request fairing of this library records the
//! address, and the first one that runs counts.

use std::net::SocketAddr;

use rocket::Request;

/// The address at the other end of a request's connection.
pub(crate) struct Arrival(Option<SocketAddr>);

impl Arrival {
    /// Records the address. Called by request fairings. Later calls change nothing.
    pub(crate) fn note(request: &Request<'_>) {
        Self::of(request);
    }

    /// Returns the recorded address. `None` for Rocket's local test client, which has no
    /// connection.
    pub(crate) fn address(request: &Request<'_>) -> Option<SocketAddr> {
        Self::of(request).0
    }

    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(|| Self(request.remote()))
    }
}
