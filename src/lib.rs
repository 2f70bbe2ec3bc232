//! The reference service. It shows how to use the library, and its code is meant to be copied.
//!
//! | module | contents |
//! | --- | --- |
//! | `databases` | the two databases and their migrations |
//! | `todos` | `/todos`, by the Todo-Backend contract, and `POST /todos/<id>/share` |
//! | `aggregates` | `/aggregates/todos`: event-sourced todos |
//! | `keys` | `Idempotency-Key` for everything that changes something |
//! | `audit` | `/audit`, and the guard that writes an audit entry for every change |
//! | `downstream` | the client of the service that `share` calls, and a stub of that service |
//! | `http` | bodies, fields, pages, problems: the HTTP code that the other modules share |
//! | `operations` | for operators: state, event feed, metrics, log, traces |
//! | `site` | the HTML pages, and `/changes`, the feed that they subscribe to |
//! | `openapi` | `/openapi.json`: the API contract, generated from the code |
//! | `faults` | failure injection, wrapped around the handlers |
//! | `config` | functions that read the service's own keys in `Rocket.toml` |
//!
//! This file assembles the modules. To copy the todos, take `todos`, `databases` and `http`, and
//! the lines of this file that mention them. If you do not want `audit` and `downstream`, remove
//! their guards `AuditLog` and `Downstream` from the handlers.

#![forbid(unsafe_code)]

mod aggregates;
mod audit;
mod config;
mod databases;
mod downstream;
mod faults;
mod http;
mod keys;
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
use rocket_tx_idempotency as idempotency;

pub use self::operations::log::{Log, start_log};

use self::config::{FaultInjection, HandlerTimeout, managed};
use self::databases::{Audit, Main};
use self::keys::accept_keys;
use self::operations::admin::{self, require_admin};
use self::operations::metrics::{self, Metrics};
#[cfg(feature = "otel")]
use self::operations::telemetry;
use self::operations::{console, leases, status};
use self::site::changes::{self, Changes};

/// Returns the service, ready to launch, configured by `Rocket.toml` and `ROCKET_*`.
pub fn rocket() -> Rocket<Build> {
    service(rocket::Config::figment())
}

/// Returns the service, ready to launch, configured by `figment`.
pub fn service(figment: Figment) -> Rocket<Build> {
    let parts = [
        accept_keys(todos::endpoints()),
        accept_keys(aggregates::endpoints()),
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
    // Each step works on the routes of the step before, so the wrapper that is added last runs
    // first.
    let routes = parts.into_iter().flat_map(|part| part.routes).collect();
    let routes = http::add_missing_methods(routes);
    let routes = console::count_rows(routes);
    let routes = faults::wrap(routes);
    // The fallback is never used: an invalid `handler_timeout` fails the launch, in a fairing
    // below.
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
        .attach(idempotency::init::<Main>().shared_keys()) // the service has no users
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
        .register("/", catchers![unparsable_path])
}

/// Responds 404 to a path with a segment that cannot be parsed as the type of the handler's
/// argument, such as `/todos/x`.
///
/// Rocket reports such a path as 422. A body that breaks a rule is a 422 too, but it does not reach
/// this catcher, because the handler itself returns that response.
#[catch(422)]
fn unparsable_path() -> Problem {
    let detail = "There is nothing at this address.";
    Problem::new(Status::NotFound, "not-found", detail)
}
