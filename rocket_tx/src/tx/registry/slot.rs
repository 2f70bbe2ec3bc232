//! The place of a registry in its request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rocket::Request;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;

use super::outstanding::Outstanding;
use crate::tx::context::RequestContext;
use crate::tx::failure::Error;
use crate::tx::monitor::Monitor;

/// Kept in Rocket's request-local cache, so that it survives a forwarding route and a catcher.
///
/// Rocket drops what is in the cache in no promised order. So the span and the place among the
/// requests in flight are the slot's own: the pools stay open until what it rolls back is over.
struct Slot {
    /// Made on first use.
    outstanding: OnceLock<Arc<Outstanding>>,
    /// The response has been settled: a registry that is made now is closed.
    is_settled: AtomicBool,
    span: Span,
    _in_flight: TaskTrackerToken,
}

impl Drop for Slot {
    /// A request that is never settled, because a fairing panicked, must not keep what it has
    /// begun: resources may hold the registry that holds them.
    fn drop(&mut self) {
        // In the span of the request, like all that is logged about it. It also makes this the end
        // of the span for who measures it to where it was last left: after the settlement.
        let _in_request = self.span.enter();
        if let Some(outstanding) = self.outstanding.get() {
            drop(outstanding.close());
        }
    }
}

impl Slot {
    fn of<'r>(request: &'r Request<'_>) -> Option<&'r Self> {
        let context = RequestContext::of(request)?;
        Some(request.local_cache(|| Self {
            outstanding: OnceLock::new(),
            is_settled: AtomicBool::new(false),
            span: context.span.clone(),
            _in_flight: context.in_flight.clone(),
        }))
    }

    fn outstanding_or(&self, make: impl FnOnce() -> Outstanding) -> &Arc<Outstanding> {
        let mut is_new = false;
        let outstanding = self.outstanding.get_or_init(|| {
            is_new = true;
            Arc::new(make())
        });
        if is_new && self.is_settled.load(Ordering::SeqCst) {
            drop(outstanding.close());
        }
        outstanding
    }
}

impl Outstanding {
    /// The registry of `request`, made now if this is its first use.
    ///
    /// # Errors
    ///
    /// [`Error::NoSettlement`] in a service without `Settlement`; [`Error::NotEntered`] where
    /// `Settlement` has not seen the request.
    pub fn of<'r>(request: &'r Request<'_>) -> Result<&'r Arc<Self>, Error> {
        let context = RequestContext::of(request).ok_or(Error::NoSettlement)?;
        if !context.is_entered() {
            return Err(Error::NotEntered);
        }
        let monitor = request.rocket().state::<Monitor>();
        let monitor = monitor.ok_or(Error::NoSettlement)?;
        let slot = Slot::of(request).ok_or(Error::NoSettlement)?;
        let outstanding = slot.outstanding_or(|| {
            Self::new(context.id, monitor.live.clone(), monitor.observers.clone())
        });
        outstanding.set_route(request.route().and_then(|route| route.name.clone()));
        Ok(outstanding)
    }

    /// The registry, if anything has used it.
    pub(in crate::tx) fn used_by<'r>(request: &'r Request<'_>) -> Option<&'r Arc<Self>> {
        Slot::of(request)?.outstanding.get()
    }

    /// The registry, if anything has used it, to be settled. From now on nothing joins that nobody
    /// would settle: a body may ask for the registry first.
    pub(in crate::tx) fn to_settle<'r>(request: &'r Request<'_>) -> Option<&'r Arc<Self>> {
        let slot = Slot::of(request)?;
        slot.is_settled.store(true, Ordering::SeqCst);
        slot.outstanding.get()
    }
}
