//! How the service is: what is outstanding, and whether it can serve.

use rocket::futures::future::join;
use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{Route, State, get, routes};
use serde::Serialize;
use utoipa::ToSchema;

use crate::Problem;
use crate::db::TransactionPool;
use crate::tx::{Live, LiveTransaction, Outcome};

use super::config::Config;
use super::openapi::Fails;
use super::{Audit, Main};

pub(super) fn routes() -> Vec<Route> {
    routes![healthz, readyz]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(healthz, readyz))]
pub(super) struct Paths;

/// For operators.
pub(super) fn inside() -> Vec<Route> {
    routes![registry]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(registry))]
pub(super) struct Inside;

#[derive(Serialize, ToSchema)]
struct Registry {
    /// What is begun and not yet settled, and what is condemned.
    outstanding: Vec<LiveTransaction>,
    settled: Counts,
    /// Who listens to `/registry/events`.
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
fn registry(live: &State<Live>, config: &State<Config>) -> Json<Registry> {
    Json(Registry {
        outstanding: live.transactions(),
        settled: Counts {
            committed: live.settled(Outcome::Committed),
            rolled_back: live.settled(Outcome::RolledBack),
            partial: live.settled(Outcome::Partial),
            unknown: live.settled(Outcome::Unknown),
        },
        listeners: live.listeners(),
        faults: config.faults,
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
    match reasons.is_empty() {
        true => Ok(Status::NoContent),
        false => Err(Problem::new(
            Status::ServiceUnavailable,
            "not-ready",
            format!("Not ready: {}.", reasons.join("; ")),
        )),
    }
}
