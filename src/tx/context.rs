//! What every request carries: its id, its method, its place among those in flight.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rocket::http::Method;
use rocket::request::{FromRequest, Outcome, Request};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;
use tracing::field::Empty;

use super::outstanding::Outstanding;
use super::problem::Problem;
use super::request_id::RequestId;
use super::settlement::Settings;

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

/// Kept in Rocket's request-local cache, so that it survives a forwarding route and a catcher.
pub(super) struct RequestContext {
    pub(super) id: RequestId,
    /// Rocket turns a HEAD without a route of its own into a GET; this is what was asked, as
    /// `Settlement` saw it.
    method: OnceLock<Method>,
    /// The registry, made on first use.
    outstanding: OnceLock<Arc<Outstanding>>,
    /// The response has been settled: a registry that is made now is closed.
    answered: AtomicBool,
    /// The problem document that the response carries, to be completed with the outcome.
    problem: Mutex<Option<Problem>>,
    /// It failed because a database is away, which was logged when that began.
    pub(super) is_known_trouble: AtomicBool,
    /// What is logged about the request is logged in it.
    pub(super) span: Span,
    /// Holds up the closing of the pools until the request is dropped, its body included.
    _in_flight: TaskTrackerToken,
}

impl Drop for RequestContext {
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
            outstanding: OnceLock::new(),
            answered: AtomicBool::new(false),
            problem: Mutex::new(None),
            is_known_trouble: AtomicBool::new(false),
            _in_flight: in_flight,
        }
    }

    /// Called by `Settlement` before routing. Another fairing may have asked for the context before.
    pub(super) fn enter(request: &Request<'_>) {
        if let Some(context) = Self::of(request) {
            context.method.get_or_init(|| request.method());
        }
    }

    /// Made on first use. `None` in a service without `Settlement`.
    pub(super) fn of<'r>(request: &'r Request<'_>) -> Option<&'r Self> {
        let settings = request.rocket().state::<Settings>()?;
        Some(request.local_cache(|| Self::new(request, settings.in_flight.token())))
    }

    /// Whether `Settlement` has seen the request, and so will settle it.
    pub(super) fn is_entered(&self) -> bool {
        self.method.get().is_some()
    }

    /// The method as it was asked.
    pub(super) fn method(&self, request: &Request<'_>) -> Method {
        self.method.get().copied().unwrap_or(request.method())
    }

    /// The request's registry, if anything has used it.
    pub(super) fn outstanding(&self) -> Option<&Arc<Outstanding>> {
        self.outstanding.get()
    }

    pub(super) fn outstanding_or(
        &self,
        make: impl FnOnce() -> Arc<Outstanding>,
    ) -> &Arc<Outstanding> {
        let mut is_new = false;
        let outstanding = self.outstanding.get_or_init(|| {
            is_new = true;
            make()
        });
        if is_new && self.answered.load(Ordering::SeqCst) {
            drop(outstanding.close());
        }
        outstanding
    }

    /// From now on nothing joins that nobody would settle: a body may ask for the registry first.
    pub(super) fn answer(&self) {
        self.answered.store(true, Ordering::SeqCst);
    }

    pub(super) fn set_problem(&self, problem: Problem) {
        *self.problem.lock() = Some(problem);
    }

    pub(super) fn take_problem(&self) -> Option<Problem> {
        self.problem.lock().take()
    }
}
