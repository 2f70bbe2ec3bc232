//! The response half of the fairing: decide, settle, rewrite, report.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use rocket::http::{Header, Status};
use rocket::{Request, Response};
use tokio::time::timeout_at;
use tracing::{Instrument, Span};

use super::capture::capture;
use super::read_body;
use super::replace::{OUTCOME, PENDING, drop_upgrades, replace, strip};
use super::rewrite::{Recorded, outcome, rewrite};
use super::run::{Deadlines, Run};
use super::settings::{Settings, VetoContext};
use crate::db::Ended;
use crate::tx::context::RequestContext;
use crate::tx::failure::{Chain, Error, Problem};
use crate::tx::fairings::RESPONSE_FAIRING;
use crate::tx::monitor::{FeedEventKind, micros, short_type};
use crate::tx::panics::shielded;
use crate::tx::registry::{Closed, HeldTransaction, Hooks, Outstanding};
use crate::tx::stored_response::StoredResponse;
use crate::tx::verdict::{Facts, Outcome, Reason, SettlementReport, Verdict};

/// The half of `Settlement` that runs when the response is ready.
pub(super) struct ResponseFairing;

#[rocket::async_trait]
impl Fairing for ResponseFairing {
    fn info(&self) -> Info {
        Info {
            name: RESPONSE_FAIRING,
            // Rocket moves a singleton to the last place when it is attached again.
            kind: Kind::Response | Kind::Singleton,
        }
    }

    async fn on_response<'r>(&self, request: &'r Request<'_>, response: &mut Response<'r>) {
        let context = RequestContext::of(request);
        let settings = request.rocket().state::<Settings>();
        let (Some(context), Some(settings)) = (context, settings) else {
            return;
        };
        // Only settlement may set these headers, so those from a handler or a fairing are removed.
        response.remove_header(OUTCOME);
        response.remove_header(PENDING);
        if let Some(outstanding) = Outstanding::to_settle(request) {
            let settling = Settle {
                settings,
                context,
                request,
                outstanding,
            };
            // Panics of resources, vetoes and hooks are caught where they are called. This
            // `catch_unwind` catches the panics of their destructors.
            let span = match context.span.is_none() {
                true => Span::none(),
                false => tracing::info_span!(parent: &context.span, "settle"),
            };
            let mut hooks = Hooks::default();
            let settled = AssertUnwindSafe(settling.run(response, &mut hooks)).catch_unwind();
            let outcome = settled.instrument(span).await.unwrap_or_else(|_| {
                tracing::error!(
                    request = %context.id,
                    "settlement panicked; check whether the request was committed"
                );
                let problem = Error::Panicked.problem();
                replace(request, response, problem, Outcome::Unknown);
                Outcome::Unknown
            });
            // Boxed, so that the future stays small for a request without hooks.
            if !hooks.is_empty() {
                let live = &settings.monitor.live;
                let limit = settings.settle_timeout;
                Box::pin(hooks.run(outcome, limit, &settings.in_flight, live)).await;
            }
        }
        context
            .span
            .in_scope(|| log_failure(request, context, response));
        response.set_header(Header::new("X-Request-Id", context.id.to_string()));
        read_body::bound(settings, context, request, response).await;
        let response = &*response;
        settings
            .monitor
            .observe(|observer| observer.responded(request, response));
    }
}

/// Logs a server error with the request's id, so that an operator finds it in the log by the id in
/// the response.
fn log_failure(request: &Request<'_>, context: &RequestContext, response: &Response<'_>) {
    let (id, status) = (context.id, response.status().code);
    let route = request.route().and_then(|route| route.name.as_deref());
    let route = route.unwrap_or("-");
    let is_known = context.has_known_outage.load(Ordering::Relaxed);
    match status {
        503 if is_known => {
            tracing::debug!(request = %id, route, status, "the request could not be served");
        }
        500 => {
            tracing::error!(request = %id, route, status, "the request failed with a server error")
        }
        501.. => tracing::warn!(request = %id, route, status, "the request could not be served"),
        _ => {}
    }
}

/// A request whose response is ready and that is to be settled.
struct Settle<'a, 'r, 's> {
    settings: &'a Settings,
    context: &'a RequestContext,
    request: &'r Request<'s>,
    outstanding: &'a Arc<Outstanding>,
}

impl<'r> Settle<'_, 'r, '_> {
    /// Settles the request, and returns the outcome. The hooks that are to run then are stored in
    /// `hooks` first, so that they remain if this panics.
    async fn run(&self, response: &mut Response<'r>, hooks: &mut Hooks) -> Outcome {
        let started = Instant::now();
        let mut closed = self.outstanding.close();
        *hooks = std::mem::take(&mut closed.hooks);
        let panicked = self.outstanding.has_panicked();
        let transactional = closed.used || (closed.wanted && panicked);
        if !transactional && hooks.is_empty() {
            return Outcome::RolledBack;
        }
        self.warn_of_slow(&closed);
        let deadlines = Deadlines::within(self.settings.settle_timeout);
        closed.collect();
        let leaked: Vec<String> = closed.held().map(|it| it.database().to_owned()).collect();
        if !leaked.is_empty() {
            // The response itself may hold the guard, in its body or in an upgrade handler. Then
            // `strip` drops the guard, and its transaction can be collected.
            strip(response);
            closed.collect();
        }
        let held: Vec<HeldTransaction<'_>> = closed.held().collect();
        // Boxed, so that the future stays small for a request that leaks nothing.
        let mut databases = match &held[..] {
            [] => Vec::new(),
            held => Box::pin(self.condemn_all(held, deadlines)).await,
        };
        drop(held);
        let is_unknown = |(_, outcome): &(_, Outcome)| *outcome == Outcome::Unknown;
        let unknown_end = databases
            .iter()
            .any(is_unknown)
            .then_some(Error::Ended { undone: false });
        let facts = Facts {
            leaked,
            panicked,
            replayed: self.outstanding.is_replayed(),
            guard_failed: closed.failure.is_some(),
            doomed: closed.doom.as_ref().map(|(_, reason)| reason.clone()),
            choice: closed.choice,
            status: response.status(),
        };
        let verdict = Verdict::of(facts, || self.vetoed(response));
        self.settings
            .monitor
            .live
            .emit(self.context.id, || FeedEventKind::Verdict {
                commit: matches!(verdict, Verdict::Commit(_)),
                reason: verdict.reason().to_string(),
            });
        let mut complete = Ok(());
        if let Verdict::Commit(_) = verdict
            && !closed.unopened.is_empty()
        {
            complete = self.open_required(&mut closed, deadlines.commit).await;
        }
        let mut captured = None;
        if let (Verdict::Commit(_), Ok(()), Some(limit)) =
            (&verdict, &complete, self.outstanding.capture_limit())
        {
            // A problem gets its outcome now. If the commit fails, the response is replaced.
            self.complete_problem(response, Outcome::Committed);
            match Box::pin(capture(response, limit, deadlines.commit)).await {
                Ok(response) => captured = Some(response),
                Err(error) => complete = Err(error),
            }
        }
        let Closed {
            resources,
            live_entries,
            doom,
            failure,
            ..
        } = closed;
        let mut run = Run::new(
            self.settings,
            self.request,
            self.context.id,
            resources,
            live_entries,
            deadlines,
        );
        run.response = captured;
        let result = match (&verdict, complete) {
            (Verdict::Commit(_), Ok(())) => run.commit().await,
            (Verdict::Commit(_), Err(error)) => Err(run.rollback().await.unwrap_or(error)),
            // A handler may have ended a transaction itself. `rollback` detects this, and for
            // condemned transactions `unknown_end` records it. Then the outcome is unknown.
            (Verdict::Rollback(_), _) => run.rollback().await.or(unknown_end).map_or(Ok(()), Err),
        };
        let held = databases.iter();
        let held = held.filter(|(_, outcome)| *outcome != Outcome::RolledBack);
        let held = held.map(|(name, _)| name.clone());
        let apart: Vec<String> = held.chain(run.committed_apart()).collect();
        databases.extend(run.outcomes());
        let pending = run.take_pending();
        drop(run);
        let outcome = outcome(&verdict, &result);
        // An outcome that is not certain was logged by the step that has failed.
        if let Err(error) = &result
            && outcome == Outcome::RolledBack
            && error.status() == Status::InternalServerError
        {
            let error = Chain(error);
            tracing::warn!(request = %self.context.id, %error, "the request could not be committed");
        }
        let recorded = Recorded { doom, failure };
        match self.stored_response(&verdict, outcome) {
            Some(stored) => {
                strip(response);
                stored.write(self.request, response);
                response.set_header(Header::new(OUTCOME, Outcome::Committed.as_str()));
            }
            None => match rewrite(&verdict, result, response.status(), recorded) {
                Some(problem) => {
                    let problem = self.with_advice(problem, outcome, &apart);
                    replace(self.request, response, problem, outcome);
                }
                None => self.complete(response, outcome),
            },
        }
        if !pending.is_empty() {
            response.set_header(Header::new(PENDING, pending.join(", ")));
        }
        let settled = SettlementReport {
            request: self.context.id,
            verdict,
            outcome,
            databases,
            pending,
            status: response.status(),
            took: started.elapsed(),
        };
        self.report(&settled);
        outcome
    }

    /// Begins the transactions that resources require and that have not begun yet, until
    /// `deadline`.
    async fn open_required(
        &self,
        closed: &mut Closed,
        deadline: tokio::time::Instant,
    ) -> Result<(), Error> {
        let limit = self.settings.settle_timeout;
        let unopened = std::mem::take(&mut closed.unopened);
        // Boxed, so that the future stays small for a request that requires none.
        let opening = Box::pin(self.outstanding.open_required(unopened));
        let opened = tokio::time::timeout_at(deadline, opening).await;
        let opened = opened.unwrap_or(Err(Error::SettleTimeout(limit)))?;
        closed.resources.extend(opened);
        Ok(())
    }

    fn vetoed(&self, response: &Response<'r>) -> bool {
        let Some(veto) = &self.settings.veto else {
            return false;
        };
        let vetoed = VetoContext {
            request: self.request,
            method: self.context.method(self.request),
            response,
        };
        shielded("a veto", || veto(&vetoed)).unwrap_or(true)
    }

    /// Adds the outcome to a response that is kept. If an error response belongs to a request that
    /// was not committed, its upgrade handlers are dropped.
    fn complete(&self, response: &mut Response<'r>, outcome: Outcome) {
        self.complete_problem(response, outcome);
        if outcome != Outcome::Committed && response.status().code >= 400 {
            drop_upgrades(self.request, response);
        }
        response.set_header(Header::new(OUTCOME, outcome.as_str()));
    }

    /// Adds the outcome to the problem that the handler or a catcher has made, if it is the
    /// response.
    fn complete_problem(&self, response: &mut Response<'r>, outcome: Outcome) {
        // The outcome was not known yet when the handler made its problem.
        if let Some(problem) = Problem::take_last(self.request) {
            let is_problem = response
                .content_type()
                .is_some_and(|kind| kind.top() == "application" && kind.sub() == "problem+json");
            if is_problem && problem.status() == response.status() {
                problem.with_outcome(outcome).write(self.request, response);
            }
        }
    }

    /// Returns the stored response to send, if there is one and it is certain that this request has
    /// changed nothing.
    fn stored_response(&self, verdict: &Verdict, outcome: Outcome) -> Option<StoredResponse> {
        let has_failed = matches!(verdict.reason(), Reason::Leaked(_) | Reason::Panicked);
        if has_failed || outcome != Outcome::RolledBack {
            return None;
        }
        self.outstanding.take_stored_response()
    }

    /// Adds to an unknown outcome how the client can learn it, if a library has provided a way.
    fn with_advice(
        &self,
        problem: Problem,
        outcome: Outcome,
        committed_apart: &[String],
    ) -> Problem {
        let repeat = self.outstanding.repeat_advice();
        let Some(repeat) = repeat.filter(|_| outcome == Outcome::Unknown) else {
            return problem;
        };
        let others = committed_apart.iter().map(String::as_str);
        let others: Vec<&str> = others.filter(|name| *name != repeat.database).collect();
        let advice = repeat.advice;
        problem.with_advice(&match &others[..] {
            [] => format!("{advice} It is not done twice."),
            others => {
                let others = others.join(", ");
                format!("{advice} But its part in {others} may then be done twice.")
            }
        })
    }

    fn report(&self, settled: &SettlementReport) {
        let SettlementReport {
            verdict,
            outcome,
            status,
            took,
            ..
        } = settled;
        let monitor = &self.settings.monitor;
        monitor.live.count(*outcome);
        monitor
            .live
            .emit(settled.request, || FeedEventKind::Settled {
                outcome: *outcome,
                status: status.code,
                took_us: micros(*took),
            });
        let span = &self.context.span;
        span.record("verdict", tracing::field::display(verdict.reason()));
        span.record("outcome", outcome.as_str());
        span.record("status", status.code);
        tracing::debug!(
            request = %settled.request, route = self.route(), verdict = %verdict.reason(),
            %outcome, status = status.code, ?took, "settled"
        );
        monitor.observe(|observer| observer.settled(self.request, settled));
    }

    /// Warns about transactions that were open for longer than `slow_transaction`, unless
    /// `monitor::slow` has already warned about them.
    fn warn_of_slow(&self, closed: &Closed) {
        for slow in closed.slower_than(self.settings.slow_transaction) {
            tracing::warn!(
                request = %self.context.id, route = self.route(), guard = short_type(slow.guard),
                resource = slow.database, age_ms = slow.age.as_millis(),
                "a transaction was outstanding for longer than `slow_transaction`; check what its request \
                 waited for"
            );
        }
    }

    /// Condemns transactions that a guard still holds although their request has ended: they can
    /// never commit. Returns the outcome of each.
    async fn condemn_all(
        &self,
        held: &[HeldTransaction<'_>],
        deadlines: Deadlines,
    ) -> Vec<(String, Outcome)> {
        held.iter().for_each(|one| self.condemn(one));
        let ends = held.iter().map(|one| async {
            let Some(ending) = one.ending() else {
                return Outcome::RolledBack; // it has not begun, and can no longer begin
            };
            match timeout_at(deadlines.commit, ending.end()).await {
                Ok(Ended::RolledBack) => Outcome::RolledBack,
                // The guard's holder may have committed it, or may still commit it.
                Ok(Ended::Before | Ended::Unasked) | Err(_) => Outcome::Unknown,
            }
        });
        let names = held.iter().map(|one| one.database().to_owned());
        names.zip(join_all(ends).await).collect()
    }

    fn condemn(&self, held: &HeldTransaction<'_>) {
        held.condemn();
        tracing::error!(
            request = %self.context.id, route = self.route(), guard = short_type(held.guard()),
            database = held.database(),
            "a guard outlives its request; its transaction can never commit: drop guards before the \
             handler returns"
        );
    }

    fn route(&self) -> &str {
        self.request
            .route()
            .and_then(|route| route.name.as_deref())
            .unwrap_or("-")
    }
}
