//! `/openapi.json`: the contract of the service, generated from its code.
//!
//! An attribute on each handler describes its responses, and the types describe their fields. Doc
//! comments become descriptions. `lib.rs` passes the [`Endpoints`] of all modules to
//! [`Contract::of`]. Descriptions that many operations share exist once: problems in
//! `http::problems`, headers in `headers`. One test compares the contract with the routes, and
//! another one with the service's responses.
//!
//! The contract describes failure injection only where it refuses a request (403 and 422). If it is
//! on, any operation can have any response.

mod headers;

use rocket::http::{ContentType, Status};
use rocket::{State, get};
use utoipa::OpenApi as _;

use crate::http::{Endpoints, describe_problems, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("contract": openapi)
}

/// Returns this document.
#[utoipa::path(responses((status = 200, description = "OpenAPI 3.1.", body = Object)))]
#[get("/openapi.json")]
fn openapi(contract: &State<Contract>) -> Result<(ContentType, &str), Status> {
    match &contract.inner().0 {
        Some(document) => Ok((ContentType::JSON, document)),
        None => Err(Status::InternalServerError),
    }
}

/// The contract as JSON; `None` if it cannot be serialized.
pub(crate) struct Contract(Option<String>);

impl Contract {
    pub(crate) fn of(parts: &[Endpoints]) -> Self {
        let mut contract = Service::openapi();
        for part in parts {
            contract.merge(part.contract.clone());
        }
        describe_problems(&mut contract);
        headers::add_to(&mut contract);
        Self(contract.to_json().ok())
    }
}

/// The description of the whole service.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "rocket_tx, the reference service", description = ABOUT),
    components(schemas(rocket_tx::Problem, rocket_tx::tx::Outcome)),
)]
struct Service;

const ABOUT: &str = "\
    A request that changes something begins transactions. If its response is a success, all of \
    them are committed.\n\n\
    Every error is `application/problem+json` (RFC 9457). A path that supports GET supports HEAD \
    too. OPTIONS returns 204 with `Allow`, and a method that the path does not support returns 405 \
    with `Allow`. Pages of any origin may use the todos, the aggregates and the audit trail: these \
    responses have CORS headers.";
