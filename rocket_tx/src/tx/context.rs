//! What every request carries: its id, its method, its place among those in flight.

use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use rocket::http::Method;
use rocket::request::{FromRequest, Outcome, Request};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;
use tracing::field::Empty;

use super::request_id::RequestId;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for RequestId {
    type Error = Infallible;

    /// Without `Settlement` every guard gets another id.
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Infallible> {
        Outcome::Success(match RequestContext::of(request) {
            Some(context) => context.id,
            None => RequestId::mint(),
        })
    }
}

/// The requests that shutdown waits for. Managed by `Settlement`.
pub(in crate::tx) struct InFlight(pub(in crate::tx) TaskTracker);

/// Kept in Rocket's request-local cache, so that it survives a forwarding route and a catcher.
pub(in crate::tx) struct RequestContext {
    pub(in crate::tx) id: RequestId,
    /// Rocket turns a HEAD without a route of its own into a GET; this is what was asked, as
    /// `Settlement` saw it.
    method: OnceLock<Method>,
    /// It failed because a database is away, which was logged when that began.
    pub(in crate::tx) is_known_trouble: AtomicBool,
    /// What is logged about the request is logged in it.
    pub(in crate::tx) span: Span,
    /// Holds up the closing of the pools until the request is dropped, its body included.
    pub(in crate::tx) in_flight: TaskTrackerToken,
}

impl RequestContext {
    fn new(request: &Request<'_>, in_flight: TaskTrackerToken) -> Self {
        let id = RequestId::mint();
        Self {
            id,
            method: OnceLock::new(),
            span: tracing::info_span!(
                "request",
                %id,
                method = %request.method(),
                route = Empty,
                verdict = Empty,
                outcome = Empty,
                status = Empty,
            ),
            is_known_trouble: AtomicBool::new(false),
            in_flight,
        }
    }

    /// Called by `Settlement` before routing. Another fairing may have asked for the context before.
    pub(in crate::tx) fn enter(request: &Request<'_>) {
        if let Some(context) = Self::of(request) {
            context.method.get_or_init(|| request.method());
        }
    }

    /// Made on first use. `None` in a service without `Settlement`.
    pub(in crate::tx) fn of<'r>(request: &'r Request<'_>) -> Option<&'r Self> {
        let InFlight(tracker) = request.rocket().state()?;
        Some(request.local_cache(|| Self::new(request, tracker.token())))
    }

    /// Whether `Settlement` has seen the request, and so will settle it.
    pub(in crate::tx) fn is_entered(&self) -> bool {
        self.method.get().is_some()
    }

    /// The method as it was asked.
    pub(in crate::tx) fn method(&self, request: &Request<'_>) -> Method {
        self.method.get().copied().unwrap_or(request.method())
    }
}
