//! The key of a request, in Rocket's request-local cache.

use std::sync::{Arc, OnceLock};

use rocket::Request;

use crate::keyed::AnyKeyed;

/// The key of one request, once a route has found it.
#[derive(Default)]
pub(crate) struct Current(OnceLock<Arc<dyn AnyKeyed>>);

impl Current {
    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(Self::default)
    }

    pub(crate) fn get<'r>(request: &'r Request<'_>) -> Option<&'r Arc<dyn AnyKeyed>> {
        Self::of(request).0.get()
    }

    pub(crate) fn set(request: &Request<'_>, keyed: Arc<dyn AnyKeyed>) {
        Self::of(request).0.get_or_init(|| keyed);
    }
}

/// Returns a key for a request to another service, which this request makes for `purpose`. `None`
/// if this request has no key.
///
/// A repeated request gets the same key again. So if the other service supports keys too, it does
/// its part once. The key is a hash: it does not reveal the key of the client.
///
/// ```
/// # use rocket::{Request, http::Header};
/// fn headers(request: &Request<'_>) -> Option<Header<'static>> {
///     let key = rocket_tx_idempotency::derived_key(request, "charge the card")?;
///     Some(Header::new("Idempotency-Key", key))
/// }
/// ```
pub fn derived_key(request: &Request<'_>, purpose: &str) -> Option<String> {
    Current::get(request).map(|keyed| keyed.scope().derive(purpose))
}
