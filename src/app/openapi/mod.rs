//! `/openapi.json`: the contract of the service, made from its code.
//!
//! Each handler says what it answers in an attribute, and each type what it looks like; doc comments
//! become descriptions. What many addresses share is said once: problems in `problems`, headers in
//! `headers`. A test holds the contract against the routes, another against what the service answers.
//!
//! Of failure injection it knows the two refusals only: with faults on, anything can be answered
//! anywhere.

mod headers;
mod problems;

use std::sync::OnceLock;

use rocket::http::{ContentType, Method, Status};
use rocket::{Route, get, routes};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::Tag;

use super::{
    aggregates, audit, changes, console, downstream, leases, metrics, site, status, todos,
};

pub(super) use self::problems::{BadBody, Fails};

pub(super) fn routes() -> Vec<Route> {
    routes![openapi]
}

/// This document.
#[utoipa::path(responses((status = 200, description = "OpenAPI 3.1.", body = Object)))]
#[get("/openapi.json")]
fn openapi() -> Result<(ContentType, &'static str), Status> {
    static DOCUMENT: OnceLock<Option<String>> = OnceLock::new();

    let document = DOCUMENT.get_or_init(|| contract().to_json().ok());
    let document = document.as_deref().ok_or(Status::InternalServerError)?;
    Ok((ContentType::JSON, document))
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(openapi))]
struct Paths;

/// What holds for the whole service.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "rocket_tx, the reference service", description = ABOUT),
    components(schemas(crate::Problem, crate::tx::Outcome)),
)]
struct Whole;

const ABOUT: &str = "\
    Transactions that tell the truth: an answer that says success means committed.\n\n\
    Every error is `application/problem+json` (RFC 9457). An address answers HEAD where it answers \
    GET, OPTIONS with 204 and `Allow`, and a method that it does not have with 405 and `Allow`. Any \
    page may use the todos, the aggregates and the audit trail: their answers bear the headers of CORS.";

fn contract() -> OpenApi {
    let mut contract = Whole::openapi();
    let mut tags: Vec<Tag> = Vec::new();
    for (part, mut paths) in [
        ("todos", todos::Paths::openapi()),
        ("aggregates", aggregates::Paths::openapi()),
        ("leases", leases::Paths::openapi()),
        ("audit", audit::Paths::openapi()),
        ("health", status::Paths::openapi()),
        ("registry", status::Inside::openapi()),
        ("registry", console::Paths::openapi()),
        ("metrics", metrics::Paths::openapi()),
        ("downstream", downstream::Paths::openapi()),
        ("changes", changes::Paths::openapi()),
        ("contract", Paths::openapi()),
        ("pages", site::Paths::openapi()),
        ("console", site::Inside::openapi()),
    ] {
        for (_, operation) in operations(&mut paths) {
            let handler = operation.operation_id.take().unwrap_or_default();
            operation.operation_id = Some(format!("{part}_{handler}"));
            operation.tags = Some(vec![part.to_owned()]);
        }
        contract.merge(paths);
        if tags.last().is_none_or(|last| last.name != part) {
            tags.push(Tag::new(part));
        }
    }
    contract.tags = Some(tags);
    guard(&mut contract);
    problems::add_to(&mut contract);
    headers::add_to(&mut contract);
    contract
}

/// Says of what is for operators how one is known, as `super::admin` knows it.
fn guard(contract: &mut OpenApi) {
    let about = "`admin_token`. Not needed from where `admin_from` says.";
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(about));
    let components = contract.components.get_or_insert_default();
    components.add_security_scheme("operator", SecurityScheme::Http(bearer.build()));
    for (_, operation) in operations(contract) {
        if ["leases", "registry", "metrics", "console"].contains(&part(operation)) {
            let token = SecurityRequirement::new::<_, [&str; 0], &str>("operator", []);
            operation.security = Some(vec![SecurityRequirement::default(), token]);
        }
    }
}

/// The part of the service that an operation belongs to.
fn part(operation: &Operation) -> &str {
    let tags = operation.tags.as_deref().unwrap_or_default();
    tags.first().map_or("", String::as_str)
}

/// All operations of the contract, each with its method.
fn operations(contract: &mut OpenApi) -> impl Iterator<Item = (Method, &mut Operation)> {
    contract.paths.paths.values_mut().flat_map(|item| {
        let all = [
            (Method::Get, &mut item.get),
            (Method::Put, &mut item.put),
            (Method::Post, &mut item.post),
            (Method::Patch, &mut item.patch),
            (Method::Delete, &mut item.delete),
        ];
        all.into_iter()
            .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
    })
}
