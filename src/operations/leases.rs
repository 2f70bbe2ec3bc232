//! `/leases`: a list of the leases, and a way to free a lease that is stuck.

use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{State, delete, get};
use rocket_tx_aggregates::aggregate::Leases;
use rocket_tx_aggregates::lock::LeaseRow;
use serde::Serialize;
use utoipa::ToSchema;

use crate::databases::Main;
use crate::http::{Endpoints, Error, Fails, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("leases": list, free)
}

#[derive(Serialize, ToSchema)]
#[schema(as = Leases)]
struct LeaseList {
    /// The leases of all processes.
    leases: Vec<LeaseRow>,
    /// The number of keys that tasks of this process hold or wait for.
    gates: usize,
}

/// Lists the leases: which holder may write which aggregate, and until when.
#[utoipa::path(responses((status = 200, description = "All leases.", body = LeaseList), Fails<503>))]
#[get("/leases")]
async fn list(leases: &State<Leases<Main>>) -> Result<Json<LeaseList>, Error> {
    Ok(Json(LeaseList {
        leases: leases.leases().await.map_err(rocket_tx::Error::from)?,
        gates: leases.keys(),
    }))
}

/// Takes a lease away from its holder.
///
/// The holder can no longer commit. Its request rolls back, and its client receives a 409.
#[utoipa::path(responses((status = 204, description = "The lease is free."), Fails<404>, Fails<503>))]
#[delete("/leases/<token>")]
async fn free(token: &str, leases: &State<Leases<Main>>) -> Result<Status, Error> {
    if leases.free(token).await.map_err(rocket_tx::Error::from)? {
        return Ok(Status::NoContent);
    }
    let detail = "There is no lease with this token; GET /leases lists them.";
    Err(Error::not_found("no-such-lease", detail))
}
