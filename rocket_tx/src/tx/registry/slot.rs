//! The place of a registry in its request: Rocket's request-local cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rocket::Request;
use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;

use super::outstanding::Outstanding;
use crate::tx::context::RequestContext;
use crate::tx::failure::Error;
use crate::tx::monitor::Monitor;
use crate::tx::verdict::Outcome;

/// The place of one registry. It is kept in Rocket's request-local cache, so that it survives a
/// forwarding route and a catcher.
///
/// Rocket drops the values of the cache in an unspecified order. Therefore the slot has its own
/// handle of the span, and its own in-flight token. The token keeps the pools open until the
/// transactions that the slot still holds are rolled back.
struct RegistrySlot {
    /// Created on first use.
    outstanding: OnceLock<Arc<Outstanding>>,
    /// The settlement has begun. A registry that is created after this is closed at once.
    is_settled: AtomicBool,
    span: Span,
    in_flight: TaskTrackerToken,
}

impl Drop for RegistrySlot {
    /// Closes the registry, and so drops everything in it. This matters for a request that is never
    /// settled because a fairing panicked, or because the request was abandoned. A resource may
    /// hold a handle of the registry that holds the resource: without this, neither would be freed.
    fn drop(&mut self) {
        // All events about the request are logged in its span. Some subscribers measure a span up
        // to its last exit. Entering the span here puts the last exit after the settlement.
        let _in_request = self.span.enter();
        if let Some(outstanding) = self.outstanding.get() {
            let mut closed = outstanding.close();
            let hooks = std::mem::take(&mut closed.hooks);
            drop(closed);
            // Without a runtime the process is about to end.
            if !hooks.is_empty() && Handle::try_current().is_ok() {
                // What was begun is rolled back, but that is not proved.
                let in_flight = self.in_flight.task_tracker();
                drop(hooks.start(Outcome::Unknown, in_flight, &outstanding.live));
            }
        }
    }
}

impl RegistrySlot {
    fn of<'r>(request: &'r Request<'_>) -> Option<&'r Self> {
        let context = RequestContext::of(request)?;
        Some(request.local_cache(|| Self {
            outstanding: OnceLock::new(),
            is_settled: AtomicBool::new(false),
            span: context.span.clone(),
            in_flight: context.in_flight.clone(),
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
    /// Returns the registry of `request`. It is created on first use.
    ///
    /// # Errors
    ///
    /// [`Error::NoSettlement`] in a service without `Settlement`. [`Error::NotEntered`] if
    /// `Settlement` has not seen the request.
    pub fn of<'r>(request: &'r Request<'_>) -> Result<&'r Arc<Self>, Error> {
        let context = RequestContext::of(request).ok_or(Error::NoSettlement)?;
        if !context.is_entered() {
            return Err(Error::NotEntered);
        }
        let monitor = request.rocket().state::<Monitor>();
        let monitor = monitor.ok_or(Error::NoSettlement)?;
        let slot = RegistrySlot::of(request).ok_or(Error::NoSettlement)?;
        let outstanding = slot.outstanding_or(|| {
            Self::new(context.id, monitor.live.clone(), monitor.observers.clone())
        });
        outstanding.set_route(request.route().and_then(|route| route.name.clone()));
        Ok(outstanding)
    }

    /// Returns the registry, if it has been used.
    pub(in crate::tx) fn used_by<'r>(request: &'r Request<'_>) -> Option<&'r Arc<Self>> {
        RegistrySlot::of(request)?.outstanding.get()
    }

    /// Returns the registry to be settled, if it has been used.
    ///
    /// If a response body is the first to use the registry, after this call, the registry is
    /// created closed. Otherwise something could join that is never settled.
    pub(in crate::tx) fn to_settle<'r>(request: &'r Request<'_>) -> Option<&'r Arc<Self>> {
        let slot = RegistrySlot::of(request)?;
        slot.is_settled.store(true, Ordering::SeqCst);
        slot.outstanding.get()
    }
}
