//! How the service is: what is outstanding, and whether it can serve.

use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{Route, State, get, routes};
use serde::Serialize;

use crate::tx::{Live, LiveTransaction, Outcome};
use crate::{Read, with_backend};

use super::{Audit, Error, Main};

pub(super) fn routes() -> Vec<Route> {
    routes![healthz, readyz]
}

/// For operators.
pub(super) fn inside() -> Vec<Route> {
    routes![registry]
}

#[derive(Serialize)]
struct Registry {
    /// What is begun and not yet settled, and what is condemned.
    outstanding: Vec<LiveTransaction>,
    settled: Counts,
    /// Who listens to `/registry/events`.
    listeners: usize,
}

/// Requests since the launch, by outcome.
#[derive(Serialize)]
struct Counts {
    committed: u64,
    rolled_back: u64,
    partial: u64,
    unknown: u64,
}

#[get("/registry")]
fn registry(live: &State<Live>) -> Json<Registry> {
    Json(Registry {
        outstanding: live.transactions(),
        settled: Counts {
            committed: live.settled(Outcome::Committed),
            rolled_back: live.settled(Outcome::RolledBack),
            partial: live.settled(Outcome::Partial),
            unknown: live.settled(Outcome::Unknown),
        },
        listeners: live.listeners(),
    })
}

/// The process is alive.
#[get("/healthz")]
fn healthz() -> Status {
    Status::NoContent
}

/// Both databases answer.
#[get("/readyz")]
async fn readyz(mut main: Read<Main>, mut audit: Read<Audit>) -> Result<Status, Error> {
    with_backend!(main, |db| sqlx::query("SELECT 1")
        .execute(db)
        .await
        .map(drop))?;
    with_backend!(audit, |db| sqlx::query("SELECT 1")
        .execute(db)
        .await
        .map(drop))?;
    Ok(Status::NoContent)
}
