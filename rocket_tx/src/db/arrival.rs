//! The remote address of a request, recorded before other fairings change it.
//!
//! Any request fairing may change the remote address, and services behind proxies do so. Rocket
//! does not keep the original address. Therefore every request fairing of this library calls
//! [`Arrival::note`], and the first call records the address. A fairing that is attached before all
//! fairings of this library can still change the address first.

use std::net::SocketAddr;

use rocket::Request;

/// The recorded remote address of a request.
pub(crate) struct Arrival(Option<SocketAddr>);

impl Arrival {
    /// Records the address. Later calls for the same request change nothing.
    pub(crate) fn note(request: &Request<'_>) {
        Self::of(request);
    }

    /// Returns the recorded address, or `None` if Rocket did not know it. Requests of Rocket's
    /// local test client have no address.
    pub(crate) fn address(request: &Request<'_>) -> Option<SocketAddr> {
        Self::of(request).0
    }

    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(|| Self(request.remote()))
    }
}
