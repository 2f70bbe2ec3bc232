//! `/leases`: who may write which aggregate, until when; and a way to free one that is stuck.

use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{Route, State, delete, get, routes};
use serde::Serialize;
use utoipa::ToSchema;

use crate::Problem;
use crate::aggregate::Leases;
use crate::lock::LeaseRow;

use super::openapi::Fails;
use super::{Error, Main};

pub(super) fn routes() -> Vec<Route> {
    routes![list, free]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, free))]
pub(super) struct Paths;

#[derive(Serialize, ToSchema)]
#[schema(as = Leases)]
struct Listed {
    /// Of all processes.
    leases: Vec<LeaseRow>,
    /// How many keys are held or waited for in this process.
    gates: usize,
}

/// Who may write which aggregate, until when.
#[utoipa::path(responses((status = 200, description = "All leases.", body = Listed), Fails<503>))]
#[get("/leases")]
async fn list(leases: &State<Leases<Main>>) -> Result<Json<Listed>, Error> {
    Ok(Json(Listed {
        leases: leases.leases().await.map_err(crate::Error::from)?,
        gates: leases.keys(),
    }))
}

/// Takes a lease from its holder, who finds out at the commit, and rolls back with a 409.
#[utoipa::path(responses((status = 204, description = "Freed."), Fails<404>, Fails<503>))]
#[delete("/leases/<token>")]
async fn free(token: &str, leases: &State<Leases<Main>>) -> Result<Status, Error> {
    match leases.free(token).await.map_err(crate::Error::from)? {
        true => Ok(Status::NoContent),
        false => Err(Error::Input(Problem::new(
            Status::NotFound,
            "no-such-lease",
            "There is no lease with this token; GET /leases lists them.",
        ))),
    }
}
