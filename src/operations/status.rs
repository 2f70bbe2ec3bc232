//! The state of the service: what is outstanding, and whether it can serve.

use rocket::futures::future::join;
use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{State, get};
use rocket_tx::Problem;
use rocket_tx::db::TransactionPool;
use rocket_tx::tx::{Live, LiveTransaction, Outcome};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::FaultInjection;
use crate::databases::{Audit, Main};
use crate::http::{Endpoints, Fails, endpoints};

pub(crate) fn probes() -> Endpoints {
    endpoints!("health": healthz, readyz)
}

/// For operators.
pub(crate) fn registry_endpoints() -> Endpoints {
    endpoints!("registry": registry)
}

#[derive(Serialize, ToSchema)]
struct Registry {
    /// Everything that is begun and not yet settled, or condemned.
    outstanding: Vec<LiveTransaction>,
    settled: Counts,
    /// The number of clients of `/registry/events`.
    listeners: usize,
    /// Whether failure injection is on.
    faults: bool,
}

/// Requests since the launch, by outcome.
#[derive(Serialize, ToSchema)]
struct Counts {
    committed: u64,
    rolled_back: u64,
    partial: u64,
    unknown: u64,
}

/// What is outstanding or condemned now.
#[utoipa::path(responses((status = 200, description = "As it is now.", body = Registry)))]
#[get("/registry")]
fn registry(live: &State<Live>, faults: &State<FaultInjection>) -> Json<Registry> {
    Json(Registry {
        outstanding: live.transactions(),
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

/// The process is alive.
#[utoipa::path(responses((status = 204, description = "It is.")))]
#[get("/healthz")]
fn healthz() -> Status {
    Status::NoContent
}

/// Both databases answer and take writes.
#[utoipa::path(responses((status = 204, description = "They do."), Fails<503>))]
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
