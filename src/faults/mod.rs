//! Failure injection: by header `X-Fault` or query `fault=`, around any endpoint.
//!
//! The handlers know nothing about it, and only the assembly imports this room. A fault acts around
//! the route ([`around`]), as an observer of the settlement ([`Crash`]) or of loading an aggregate
//! ([`at_loaded`]), or as a failure of the other service that [`crate::downstream`] simulates.
//!
//! With faults off (`faults = false`, the default in release) a request that carries one is
//! refused with 403 and not executed.

mod loaded;
mod parse;
mod requested;
mod sql;

use std::time::Duration;

use rocket::http::Status;
use rocket::route::{Handler, Outcome};
use rocket::tokio::time::sleep;
use rocket::{Data, Request, Response, Route};
use rocket_tx::db::Connection;
use rocket_tx::tx::{self, Action, Observer, SettlementReport, Step};
use rocket_tx::{Outstanding, Tx};

use crate::databases::Main;
use crate::http::{decorate, respond};

use self::parse::{CrashPoint, Fault};
use self::requested::admitted;

pub(crate) use self::loaded::at_loaded;

/// The same routes, each with failure injection around it.
pub(crate) fn around(routes: Vec<Route>) -> Vec<Route> {
    decorate(routes, InjectFaults)
}

/// A handler with failure injection around it.
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

/// Carries the fault out, after the handler and before settlement. Returns the response that
/// replaces the handler's, if the fault is one.
async fn inject<'r>(request: &'r Request<'_>, fault: &Fault) -> Option<Outcome<'r>> {
    match fault {
        Fault::Respond(status) if status.code >= 400 => return Some(Outcome::Error(*status)),
        Fault::Respond(status) => {
            return Some(Outcome::Success(
                Response::build().status(*status).finalize(),
            ));
        }
        Fault::Panic => panic!("the fault `panic`"),
        Fault::Delay(time) => sleep(*time).await,
        Fault::Doom => {
            let outstanding = Outstanding::of(request);
            let reason = "The fault `doom` was asked for.";
            if let Err(error) = outstanding.and_then(|it| it.doom(Status::Conflict, reason)) {
                tracing::warn!(%error, "the fault `doom` failed by itself");
            }
        }
        Fault::Commit => with_transaction(request, sql::break_a_deferred_constraint).await,
        Fault::Swallow => with_transaction(request, sql::swallow_an_error).await,
        Fault::Disconnect => with_transaction(request, sql::end_the_session).await,
        Fault::Leak(time) => leak(request, *time),
        // These act elsewhere: at the downstream call, when an aggregate has been loaded, and while
        // the request is settled.
        Fault::Downstream(_) | Fault::DelayLoaded(_) | Fault::ExpireLease | Fault::Crash(_) => {}
    }
    None
}

/// Runs `work` in the request's transaction of `main`, if it has one.
async fn with_transaction(request: &Request<'_>, work: impl AsyncFnOnce(&mut Connection)) {
    if let Ok(Some(mut tx)) = Tx::<Main>::current(request) {
        work(&mut tx).await;
    }
}

/// Starts a task that holds the guard for longer than the request lives.
fn leak(request: &Request<'_>, time: Duration) {
    if let Ok(Some(tx)) = Tx::<Main>::current(request) {
        rocket::tokio::spawn(async move {
            sleep(time).await;
            drop(tx);
        });
    }
}

/// Ends the process in the middle of a settlement, as a power failure would.
pub(crate) struct Crash;

impl Crash {
    fn if_requested(request: &Request<'_>, point: CrashPoint) {
        if admitted(request).is_ok_and(|faults| faults.contains(&Fault::Crash(point))) {
            tracing::warn!(?point, "a fault ends the process");
            std::process::abort();
        }
    }
}

impl Observer for Crash {
    fn before(&self, step: &Step<'_, '_>) {
        match (step.action, step.committed) {
            (Action::Commit, 0) => Self::if_requested(step.request, CrashPoint::BeforeCommit),
            (Action::Commit, 1) => Self::if_requested(step.request, CrashPoint::BetweenCommits),
            _ => {}
        }
    }

    fn settled(&self, request: &Request<'_>, settled: &SettlementReport) {
        if settled.outcome == tx::Outcome::Committed {
            Self::if_requested(request, CrashPoint::AfterCommit);
        }
    }
}
