//! Failure injection: the header `X-Fault` or the query `fault=` makes any endpoint fail.
//!
//! The handlers do not know about it: only `lib.rs` imports this module. A fault acts in a wrapper
//! around the route ([`wrap`]), in an observer of the settlement ([`Crash`]), in an observer of
//! loading an aggregate ([`at_loaded`]), or in [`crate::downstream`], which simulates a failure of
//! the downstream service.
//!
//! If failure injection is off (`faults = false`, the default in release), a request that carries a
//! fault is refused with 403 and not executed.

mod loaded;
mod parse;
mod requested;
mod sql;

use std::time::Duration;

use rocket::http::Status;
use rocket::route::{Handler, Outcome};
use rocket::tokio::time::sleep;
use rocket::{Data, Request, Response, Route};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{self, Action, Observer, SettlementReport, Step};
use rocket_tx::{Outstanding, Tx};

use crate::databases::Main;
use crate::http::{decorate, respond};

use self::parse::{CrashPoint, Fault};
use self::requested::admitted;

pub(crate) use self::loaded::at_loaded;

/// Wraps each route in failure injection.
pub(crate) fn wrap(routes: Vec<Route>) -> Vec<Route> {
    decorate(routes, InjectFaults)
}

/// A handler wrapped in failure injection.
#[derive(Clone)]
struct InjectFaults(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for InjectFaults {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        let faults = match admitted(request) {
            Ok(faults) => faults,
            Err(problem) => return respond(request, problem),
        };
        for fault in faults {
            if let Fault::Downstream(failure) = fault {
                failure.set(request);
            }
        }
        let mut outcome = self.0.handle(request, data).await;
        for fault in faults {
            if let Some(instead) = inject(request, fault).await {
                outcome = instead;
            }
        }
        outcome
    }
}

/// Carries out a fault, after the handler and before settlement. If the fault replaces the
/// handler's response, the new response is returned.
async fn inject<'r>(request: &'r Request<'_>, fault: &Fault) -> Option<Outcome<'r>> {
    match fault {
        Fault::Respond(status) if status.code >= 400 => return Some(Outcome::Error(*status)),
        Fault::Respond(status) => {
            return Some(Outcome::Success(
                Response::build().status(*status).finalize(),
            ));
        }
        Fault::Panic => panic!("injected by the fault `panic`"),
        Fault::Delay(time) => sleep(*time).await,
        Fault::Doom => {
            let outstanding = Outstanding::of(request);
            let reason = "The request carries the fault `doom`.";
            if let Err(error) = outstanding.and_then(|it| it.doom(Status::Conflict, reason)) {
                tracing::warn!(%error, "cannot inject the fault `doom`");
            }
        }
        Fault::Commit => with_transaction(request, sql::break_a_deferred_constraint).await,
        Fault::Swallow => with_transaction(request, sql::swallow_an_error).await,
        Fault::Disconnect => with_transaction(request, sql::end_the_session).await,
        Fault::Leak(time) => leak(request, *time),
        // These faults act elsewhere: in the downstream call, after an aggregate was loaded, and
        // during settlement.
        Fault::Downstream(_) | Fault::DelayLoaded(_) | Fault::ExpireLease | Fault::Crash(_) => {}
    }
    None
}

/// Runs `work` in the request's transaction of `main`, if the request has one.
async fn with_transaction(request: &Request<'_>, work: impl AsyncFnOnce(&mut UrlConnection)) {
    if let Ok(Some(mut tx)) = Tx::<Main>::current(request) {
        work(&mut tx).await;
    }
}

/// Starts a task that holds the guard of `main` for `time`, so that the guard outlives the request.
fn leak(request: &Request<'_>, time: Duration) {
    if let Ok(Some(tx)) = Tx::<Main>::current(request) {
        rocket::tokio::spawn(async move {
            sleep(time).await;
            drop(tx);
        });
    }
}

/// An observer that aborts the process in the middle of a settlement, if the request carries such a
/// fault.
pub(crate) struct Crash;

impl Crash {
    fn if_requested(request: &Request<'_>, point: CrashPoint) {
        if admitted(request).is_ok_and(|faults| faults.contains(&Fault::Crash(point))) {
            tracing::warn!(?point, "a fault aborts the process");
            std::process::abort();
        }
    }
}

impl Observer for Crash {
    fn before(&self, step: &Step<'_, '_>) {
        let point = match (step.action, step.committed) {
            (Action::Commit | Action::PrepareTransaction, 0) => CrashPoint::BeforeCommit,
            (Action::Decide, _) => CrashPoint::BeforeDecision,
            (Action::Commit, 1) | (Action::CommitPrepared, _) => CrashPoint::BetweenCommits,
            _ => return,
        };
        Self::if_requested(step.request, point);
    }

    fn settled(&self, request: &Request<'_>, settled: &SettlementReport) {
        if settled.outcome == tx::Outcome::Committed {
            Self::if_requested(request, CrashPoint::AfterCommit);
        }
    }
}
