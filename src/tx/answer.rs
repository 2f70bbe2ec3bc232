//! One response, as it is about to leave: the verdict is read off it, carried out, and told.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::futures::FutureExt;
use rocket::http::Header;
use rocket::{Request, Response};
use tracing::Instrument;

use super::collected::Collected;
use super::context::RequestContext;
use super::error::Error;
use super::feed::{Happened, micros};
use super::hooks::Hooks;
use super::live::{LiveFlags, Settled, short_type};
use super::outstanding::{Entry, Lending, Outstanding, State};
use super::replace::{replace, strip};
use super::require::Missing;
use super::settle::{Run, shielded};
use super::settlement::{Settings, Vetoed};
use super::verdict::{Choice, Outcome, Reason, Verdict};

/// The half that sees the response.
pub(super) struct Answer;

#[rocket::async_trait]
impl Fairing for Answer {
    fn info(&self) -> Info {
        Info {
            name: "Settlement",
            kind: Kind::Response,
        }
    }

    async fn on_response<'r>(&self, request: &'r Request<'_>, response: &mut Response<'r>) {
        let context = RequestContext::of(request);
        let settings = request.rocket().state::<Settings>();
        let (Some(context), Some(settings)) = (context, settings) else {
            return;
        };
        if let Some(outstanding) = context.outstanding() {
            let settling = Settle {
                settings,
                context,
                request,
                outstanding,
            };
            // Resources, vetoes and hooks are shielded one by one; this is for what they leave
            // behind when they are dropped.
            let span = tracing::info_span!(parent: &context.span, "settle");
            let settled = AssertUnwindSafe(settling.run(response)).catch_unwind();
            if settled.instrument(span).await.is_err() {
                tracing::error!(request = %context.id, "settling panicked");
                replace(
                    request,
                    response,
                    Error::Panicked.problem(),
                    Outcome::Unknown,
                );
            }
        }
        context
            .span
            .in_scope(|| log_failure(request, context, response));
        response.set_header(Header::new("X-Request-Id", context.id.to_string()));
    }
}

/// Clients are told to look for the request's id in the log.
fn log_failure(request: &Request<'_>, context: &RequestContext, response: &Response<'_>) {
    let (id, status) = (context.id, response.status().code);
    let route = request.route().and_then(|route| route.name.as_deref());
    let route = route.unwrap_or("-");
    let is_known = context.is_known_trouble.load(Ordering::Relaxed);
    match status {
        503 if is_known => {
            tracing::debug!(request = %id, route, status, "the request could not be served");
        }
        500 => tracing::error!(request = %id, route, status, "the service failed"),
        501.. => tracing::warn!(request = %id, route, status, "the request could not be served"),
        _ => {}
    }
}

/// One request, its response ready, about to be settled.
struct Settle<'a, 'r, 's> {
    settings: &'a Settings,
    context: &'a RequestContext,
    request: &'r Request<'s>,
    outstanding: &'a Arc<Outstanding>,
}

/// A verdict that was carried out.
struct CarriedOut {
    databases: Vec<(String, Outcome)>,
    started: Instant,
}

impl<'r> Settle<'_, 'r, '_> {
    async fn run(&self, response: &mut Response<'r>) {
        let started = Instant::now();
        let mut state = self.outstanding.close();
        let hooks = std::mem::take(&mut state.hooks);
        if !state.used && hooks.is_empty() {
            return;
        }
        self.warn_of_slow(&state);
        let missing = state.missing();
        let deadline = tokio::time::Instant::now() + self.settings.settle_timeout;
        let mut collected = Collected::default();
        let mut held = collected.take(std::mem::take(&mut state.entries));
        let leaked: Vec<String> = held.iter().map(|lending| lending.name.to_owned()).collect();
        if !held.is_empty() {
            // What holds it may be the response itself: its body, its upgrade handler.
            strip(response);
            held = collected.take(held.into_iter().map(Entry::Database).collect());
            held.iter().for_each(|lending| self.condemn(lending));
        }
        let condemned = held
            .iter()
            .map(|lending| (lending.name.to_owned(), Outcome::RolledBack));
        let mut databases: Vec<_> = condemned.collect();
        let verdict = self.verdict(leaked, &state, response);
        self.settings
            .live
            .tell(self.context.id, || Happened::Verdict {
                commit: matches!(verdict, Verdict::Commit(_)),
                reason: verdict.reason().to_string(),
            });
        let mut complete = Ok(());
        if let Verdict::Commit(_) = verdict
            && !missing.is_empty()
        {
            complete = self.open_missing(missing, &mut collected, deadline).await;
        }
        let Collected { resources, lines } = collected;
        let mut run = Run::new(
            self.settings,
            self.request,
            self.context.id,
            resources,
            lines,
            deadline,
        );
        let result = match &verdict {
            Verdict::Commit(_) => match complete {
                Ok(()) => run.commit().await,
                Err(error) => {
                    run.rollback().await;
                    Err(error)
                }
            },
            Verdict::Rollback(reason) => {
                let anything = !run.is_empty();
                run.rollback().await;
                databases.extend(run.outcomes());
                drop(run);
                let carried_out = CarriedOut { databases, started };
                return self.rolled_back(reason, anything, state, hooks, carried_out, response);
            }
        };
        databases.extend(run.outcomes());
        drop(run);
        let carried_out = CarriedOut { databases, started };
        let outcome = match &result {
            Ok(()) => Outcome::Committed,
            Err(error) => error.outcome(),
        };
        if let Err(error) = &result {
            replace(self.request, response, error.problem(), outcome);
        }
        self.done(verdict, outcome, hooks, carried_out, response);
    }

    /// Begins the transactions that resources need and that nobody has begun, bounded.
    async fn open_missing(
        &self,
        missing: Vec<Missing>,
        collected: &mut Collected,
        deadline: tokio::time::Instant,
    ) -> Result<(), Error> {
        let limit = self.settings.settle_timeout;
        // Boxed: the future of a request without any stays small.
        let opening = Box::pin(self.outstanding.open_missing(missing));
        let opened = tokio::time::timeout_at(deadline, opening).await;
        let opened = opened.unwrap_or(Err(Error::SettleTimeout(limit)))?;
        collected.resources.extend(opened);
        Ok(())
    }

    /// First match wins.
    fn verdict(&self, leaked: Vec<String>, state: &State, response: &Response<'r>) -> Verdict {
        let status = response.status();
        if !leaked.is_empty() {
            Verdict::Rollback(Reason::Leaked(leaked))
        } else if self.outstanding.has_panicked() {
            Verdict::Rollback(Reason::Panicked)
        } else if state.failure.is_some() {
            Verdict::Rollback(Reason::GuardFailed)
        } else if let Some((_, reason)) = &state.doom {
            Verdict::Rollback(Reason::Doomed(reason.clone()))
        } else if let Some(choice) = state.choice {
            match choice {
                Choice::Commit => Verdict::Commit(Reason::Handler),
                Choice::Rollback => Verdict::Rollback(Reason::Handler),
            }
        } else if self.vetoed(response) {
            Verdict::Rollback(Reason::Vetoed)
        } else if status.code < 400 {
            Verdict::Commit(Reason::Status(status))
        } else {
            Verdict::Rollback(Reason::Status(status))
        }
    }

    fn vetoed(&self, response: &Response<'r>) -> bool {
        let Some(veto) = &self.settings.veto else {
            return false;
        };
        let vetoed = Vetoed {
            request: self.request,
            method: self.context.method,
            response,
        };
        shielded("a veto", || veto(&vetoed)).unwrap_or(true)
    }

    /// Everything was rolled back. A success that nobody chose does not stand.
    fn rolled_back(
        &self,
        reason: &Reason,
        anything: bool,
        state: State,
        hooks: Hooks,
        carried_out: CarriedOut,
        response: &mut Response<'r>,
    ) {
        let status = response.status();
        let claims_success = status.code < 300 && anything;
        let problem = match reason {
            Reason::Leaked(names) => Some(Error::Leaked(names.clone()).problem()),
            Reason::Panicked if claims_success => Some(Error::Panicked.problem()),
            Reason::GuardFailed if claims_success => state.failure,
            Reason::Doomed(_) if status.code < 400 => state
                .doom
                .map(|(status, reason)| Error::Doomed { status, reason }.problem()),
            _ => None,
        };
        if let Some(problem) = problem {
            replace(self.request, response, problem, Outcome::RolledBack);
        }
        self.done(
            Verdict::Rollback(reason.clone()),
            Outcome::RolledBack,
            hooks,
            carried_out,
            response,
        );
    }

    fn done(
        &self,
        verdict: Verdict,
        outcome: Outcome,
        hooks: Hooks,
        carried_out: CarriedOut,
        response: &mut Response<'r>,
    ) {
        // A problem that the handler answered with could not know the outcome yet.
        if let Some(problem) = self.context.take_problem() {
            let is_problem = response
                .content_type()
                .is_some_and(|kind| kind.top() == "application" && kind.sub() == "problem+json");
            if is_problem && problem.status() == response.status() {
                problem.with_outcome(outcome).write(self.request, response);
            }
        }
        response.set_header(Header::new("Transaction-Outcome", outcome.as_str()));
        self.settings.live.count(outcome);
        let settled = Settled {
            request: self.context.id,
            verdict,
            outcome,
            databases: carried_out.databases,
            status: response.status(),
            took: carried_out.started.elapsed(),
        };
        self.settings
            .live
            .tell(settled.request, || Happened::Settled {
                outcome,
                status: settled.status.code,
                took_us: micros(settled.took),
            });
        let span = &self.context.span;
        span.record("verdict", tracing::field::display(settled.verdict.reason()));
        span.record("outcome", outcome.as_str());
        span.record("status", settled.status.code);
        tracing::debug!(
            request = %settled.request, route = self.route(), verdict = %settled.verdict.reason(),
            %outcome, status = settled.status.code, took = ?settled.took, "settled"
        );
        self.settings
            .observe(|observer| observer.settled(self.request, &settled));
        hooks.run(outcome, &self.settings.in_flight, &self.settings.live);
    }

    /// Of those that were open for long, but not for so long that they were seen while they were.
    fn warn_of_slow(&self, state: &State) {
        for entry in &state.entries {
            let Entry::Database(lending) = entry else {
                continue;
            };
            let age = lending.since.elapsed();
            let flags = lending.flags.as_ref();
            if age > self.settings.slow_transaction && flags.is_some_and(LiveFlags::warn) {
                tracing::warn!(
                    request = %self.context.id, route = self.route(), guard = short_type(lending.guard),
                    resource = lending.name, age_ms = age.as_millis(),
                    "outstanding for longer than `slow_transaction`"
                );
            }
        }
    }

    fn condemn(&self, lending: &Lending) {
        if let Some(flags) = &lending.flags {
            flags.condemn();
        }
        tracing::error!(
            request = %self.context.id, route = self.route(), guard = short_type(lending.guard),
            database = lending.name,
            "a guard outlives its request; its transaction can never commit, and rolls back when \
             the guard is dropped"
        );
    }

    fn route(&self) -> &str {
        self.request
            .route()
            .and_then(|route| route.name.as_deref())
            .unwrap_or("-")
    }
}
