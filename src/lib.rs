//! The reference service: the library in use, for copying.
//!
//! | room | what it holds |
//! | --- | --- |
//! | `databases` | the two databases, and their migrations |
//! | `todos` | `/todos`, by the Todo-Backend contract, and `POST /todos/<id>/share` |
//! | `aggregates` | `/aggregates/todos`: event-sourced todos |
//! | `audit` | `/audit`, and the guard that writes a line for every change |
//! | `downstream` | the service that `share` calls, and a stub of it |
//! | `http` | bodies, fields, pages, problems: what all of them need of HTTP |
//! | `operations` | for operators: state, feed, metrics, log, traces |
//! | `site` | the pages, and their feed `/changes` |
//! | `openapi` | `/openapi.json`: the contract, made from the code |
//! | `faults` | failure injection, around the handlers |
//! | `config` | the service's own keys in `Rocket.toml` |
//!
//! This file puts them together. To copy the todos, take `todos`, `databases`, `http`, and from here
//! the lines that mention them; without `audit` and `downstream`, leave out their two guards.

#![forbid(unsafe_code)]

mod aggregates;
mod audit;
mod config;
mod databases;
mod downstream;
mod faults;
mod http;
mod openapi;
mod operations;
mod site;
mod todos;

use rocket::figment::Figment;
use rocket::http::Status;
use rocket::{Build, Rocket, catch, catchers};
use rocket_tx::tx::{bounded, traced};
use rocket_tx::{Problem, Settlement, db, problem_catchers};
use rocket_tx_aggregates::aggregate;

pub use self::operations::log::{Log, start_log};

use self::config::{FaultInjection, HandlerTimeout, managed};
use self::databases::{Audit, Main};
use self::operations::admin::{self, require_admin};
use self::operations::metrics::{self, Metrics};
#[cfg(feature = "otel")]
use self::operations::telemetry;
use self::operations::{console, leases, status};
use self::site::changes::{self, Changes};

/// The service, configured by `Rocket.toml` and `ROCKET_*`, ready to launch.
pub fn rocket() -> Rocket<Build> {
    service(rocket::Config::figment())
}

/// The service, configured by `figment`.
pub fn service(figment: Figment) -> Rocket<Build> {
    let parts = [
        todos::endpoints(),
        aggregates::endpoints(),
        require_admin(leases::endpoints()),
        audit::endpoints(),
        status::probes(),
        require_admin(status::registry_endpoints()),
        require_admin(console::endpoints()),
        require_admin(metrics::endpoints()),
        downstream::endpoints(),
        changes::endpoints(),
        openapi::endpoints(),
        site::endpoints(),
        require_admin(site::operator_endpoints()),
    ];
    let contract = openapi::Contract::of(&parts);
    // Each line stands around the lines before it.
    let routes = parts.into_iter().flat_map(|part| part.routes).collect();
    let routes = http::answer_every_method(routes);
    let routes = console::count_rows(routes);
    let routes = faults::around(routes);
    // A timeout that cannot be read stops the launch below.
    let limit = HandlerTimeout::read(&figment).unwrap_or_default();
    let routes = bounded(routes, limit.0);
    #[cfg(feature = "otel")]
    let routes = telemetry::continue_traces(routes);
    let routes = traced(routes);
    let metrics = Metrics::default();
    let changes = Changes::default();

    rocket::custom(figment)
        .attach(db::init::<Main>().migrations(Main::migrations()))
        .attach(db::init::<Audit>().migrations(Audit::migrations()))
        .attach(
            aggregate::init::<Main>()
                .projection::<aggregates::Todo>(aggregates::TodoList)
                .observe_loads(faults::at_loaded),
        )
        .attach(
            Settlement::new()
                .observer(console::Recount)
                .observer(metrics.clone())
                .observer(changes.clone())
                .observer(faults::Crash),
        )
        .attach(metrics::Arrivals)
        .attach(managed("Handler timeout", HandlerTimeout::read))
        .attach(managed("Operators", admin::Operators::read))
        .attach(managed("Failure injection", FaultInjection::read))
        .attach(managed("Downstream service", downstream::Client::read))
        .attach(http::Cors)
        .attach(site::shield())
        .manage(changes)
        .manage(contract)
        .manage(metrics)
        .mount("/", routes)
        .register("/", problem_catchers())
        .register("/", catchers![no_such_address])
}

/// Rocket's 422 for a path with a part that is not of its type: `/todos/x`. Handlers respond to
/// bodies that break a rule themselves.
#[catch(422)]
fn no_such_address() -> Problem {
    let detail = "There is nothing at this address.";
    Problem::new(Status::NotFound, "not-found", detail)
}
