//! The data of every request: its id, its method, and the token that makes shutdown wait for it.

use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use rocket::http::Method;
use rocket::request::{FromRequest, Outcome, Request};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;
use tracing::field::Empty;
use tracing::subscriber::NoSubscriber;

use super::request_id::RequestId;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for RequestId {
    type Error = Infallible;

    /// In a service without `Settlement`, each use of the guard returns a new id.
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Infallible> {
        Outcome::Success(match RequestContext::of(request) {
            Some(context) => context.id,
            None => RequestId::mint(),
        })
    }
}

/// Tracks the requests that shutdown waits for. Put into Rocket's managed state by `Settlement`.
pub(in crate::tx) struct InFlight(pub(in crate::tx) TaskTracker);

/// The data of one request. It is kept in Rocket's request-local cache, so that it survives a
/// forwarding route and a catcher.
pub(in crate::tx) struct RequestContext {
    pub(in crate::tx) id: RequestId,
    /// The method of the request when `Settlement` saw it. Later, Rocket turns a HEAD for which
    /// there is no route into a GET.
    method: OnceLock<Method>,
    /// The request failed because a database is unavailable. Set by `Error::note_known_outage`, so
    /// that the failure is logged at the debug level only.
    pub(in crate::tx) has_known_outage: AtomicBool,
    /// The span of all log events about the request.
    pub(in crate::tx) span: Span,
    /// Delays the closing of the pools until the request, with its response body, is dropped.
    pub(in crate::tx) in_flight: TaskTrackerToken,
}

/// Whether the service has a `tracing` subscriber. Without one, `tracing` writes a line to Rocket's
/// log for each span and for each value that is recorded in it: five lines a request.
fn has_subscriber() -> bool {
    !tracing::dispatcher::get_default(|dispatch| dispatch.is::<NoSubscriber>())
}

impl RequestContext {
    fn new(request: &Request<'_>, in_flight: TaskTrackerToken) -> Self {
        let id = RequestId::mint();
        Self {
            id,
            method: OnceLock::new(),
            span: match has_subscriber() {
                true => tracing::info_span!(
                    "request",
                    %id,
                    method = %request.method(),
                    route = Empty,
                    verdict = Empty,
                    outcome = Empty,
                    status = Empty,
                ),
                false => Span::none(),
            },
            has_known_outage: AtomicBool::new(false),
            in_flight,
        }
    }

    /// Records the method of the request. Called by `Settlement` before routing. Another fairing
    /// may have created the context earlier.
    pub(in crate::tx) fn enter(request: &Request<'_>) {
        if let Some(context) = Self::of(request) {
            context.method.get_or_init(|| request.method());
        }
    }

    /// Returns the context of `request`, created on first use. `None` in a service without
    /// `Settlement`.
    pub(in crate::tx) fn of<'r>(request: &'r Request<'_>) -> Option<&'r Self> {
        let InFlight(tracker) = request.rocket().state()?;
        Some(request.local_cache(|| Self::new(request, tracker.token())))
    }

    /// Whether `Settlement` has seen the request. Only then will it settle the request.
    pub(in crate::tx) fn is_entered(&self) -> bool {
        self.method.get().is_some()
    }

    /// The method of the request before routing.
    pub(in crate::tx) fn method(&self, request: &Request<'_>) -> Method {
        self.method.get().copied().unwrap_or(request.method())
    }
}
