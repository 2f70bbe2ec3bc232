//! The state of the service: what is outstanding, and whether the service can serve requests.

use rocket::futures::future::join;
use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{State, get};
use rocket_tx::Problem;
use rocket_tx::db::TransactionPool;
use rocket_tx::tx::{Live, LiveTransaction, Outcome, PreparedTransaction};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::FaultInjection;
use crate::databases::{Audit, Main};
use crate::http::{Endpoints, Fails, endpoints};

pub(crate) fn probes() -> Endpoints {
    endpoints!("health": healthz, readyz)
}

/// The endpoint that only operators may use.
pub(crate) fn registry_endpoints() -> Endpoints {
    endpoints!("registry": registry)
}

#[derive(Serialize, ToSchema)]
struct Registry {
    /// Everything that is outstanding (begun and not settled yet) or condemned (its request has
    /// ended while a task still holds it).
    outstanding: Vec<LiveTransaction>,
    /// Prepared transactions whose request has ended and that nobody has finished yet.
    in_doubt: Vec<PreparedTransaction>,
    settled: Counts,
    /// The number of clients of `/registry/events`.
    listeners: usize,
    /// Whether failure injection is on.
    faults: bool,
}

/// The number of settled requests since the launch, by outcome.
#[derive(Serialize, ToSchema)]
struct Counts {
    committed: u64,
    rolled_back: u64,
    partial: u64,
    unknown: u64,
}

/// Lists what is outstanding or condemned now, and counts the settled requests.
#[utoipa::path(responses((status = 200, description = "The current state.", body = Registry)))]
#[get("/registry")]
fn registry(live: &State<Live>, faults: &State<FaultInjection>) -> Json<Registry> {
    Json(Registry {
        outstanding: live.transactions(),
        in_doubt: live.in_doubt(),
        settled: Counts {
            committed: live.settled(Outcome::Committed),
            rolled_back: live.settled(Outcome::RolledBack),
            partial: live.settled(Outcome::Partial),
            unknown: live.settled(Outcome::Unknown),
        },
        listeners: live.listeners(),
        faults: faults.0,
    })
}

/// Reports that the process is alive.
#[utoipa::path(responses((status = 204, description = "The process is alive.")))]
#[get("/healthz")]
fn healthz() -> Status {
    Status::NoContent
}

/// Checks that both databases respond and accept writes.
#[utoipa::path(responses((status = 204, description = "Both databases are ready."), Fails<503>))]
#[get("/readyz")]
async fn readyz(main: &State<Main>, audit: &State<Audit>) -> Result<Status, Problem> {
    let (main, audit) = join(main.ready(), audit.ready()).await;
    let reasons: Vec<String> = [("main", main), ("audit", audit)]
        .into_iter()
        .filter_map(|(name, ready)| Some(format!("the database `{name}` {}", ready.err()?)))
        .collect();
    if reasons.is_empty() {
        return Ok(Status::NoContent);
    }
    let detail = format!("Not ready: {}.", reasons.join("; "));
    Err(Problem::new(
        Status::ServiceUnavailable,
        "not-ready",
        detail,
    ))
}
