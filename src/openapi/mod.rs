//! `/openapi.json`: the contract of the service, made from its code.
//!
//! Each handler describes its responses in an attribute, and each type its fields; doc comments
//! become descriptions. The assembly hands over the [`Endpoints`] of all parts. Things that many
//! addresses share are described once: problems in `http::problems`, headers in `headers`. One test
//! compares the contract with the routes, another with the service's responses.
//!
//! Of failure injection it describes the two refusals only: with faults on, any address can respond
//! anything.

mod headers;

use rocket::http::{ContentType, Status};
use rocket::{State, get};
use utoipa::OpenApi as _;

use crate::http::{Endpoints, describe_problems, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("contract": openapi)
}

/// This document.
#[utoipa::path(responses((status = 200, description = "OpenAPI 3.1.", body = Object)))]
#[get("/openapi.json")]
fn openapi(contract: &State<Contract>) -> Result<(ContentType, &str), Status> {
    match &contract.inner().0 {
        Some(document) => Ok((ContentType::JSON, document)),
        None => Err(Status::InternalServerError),
    }
}

/// The contract as JSON.
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
    Transactions that tell the truth: an answer that says success means committed.\n\n\
    Every error is `application/problem+json` (RFC 9457). An address answers HEAD where it answers \
    GET, OPTIONS with 204 and `Allow`, and a method that it does not have with 405 and `Allow`. Any \
    page may use the todos, the aggregates and the audit trail: their answers bear the headers of CORS.";
