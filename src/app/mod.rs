//! The reference service: what the library looks like in use, for copying.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `todos` | `/todos`, by the Todo-Backend contract, and `POST /todos/<id>/share` |
//! | `aggregates` | `/aggregates/todos`: event-sourced todos |
//! | `leases` | `/leases`: who may write which of them |
//! | `audit` | `/audit`, and the guard that writes a line for every change |
//! | `downstream` | the service that `share` calls, and its stand-in |
//! | `status` | `/registry`, `/healthz`, `/readyz` |
//! | `admin` | who may look inside |
//! | `console` | `/registry/events`: what happens, as it happens |
//! | `metrics` | `/metrics` |
//! | `site` | the pages, and what browsers are told of them |
//! | `statements` | the statements of requests, told to the feed |
//! | `changes` | `/changes`: which lists have changed |
//! | `faults` | failure injection, around the handlers |
//! | `body`, `field`, `page`, `error` | what clients send, and what they are told when it is wrong |
//! | `openapi` | `/openapi.json`: all of it, as a contract made from the code |
//! | `cors`, `methods` | headers and answers that every address has |
//! | `log` | how it logs |
//! | `telemetry` | its spans, for an OpenTelemetry collector, with the feature `otel` |
//! | `tls` | TLS for what it calls |
//! | `decorate` | handlers around handlers |
//! | `config` | the service's own keys in `Rocket.toml` |
//!
//! Everything here uses the library through its public door; no library room imports it.

mod admin;
mod aggregates;
mod audit;
mod body;
mod changes;
mod config;
mod console;
mod cors;
mod decorate;
mod downstream;
mod error;
mod faults;
mod field;
mod leases;
mod log;
mod methods;
mod metrics;
mod openapi;
mod page;
mod site;
mod statements;
mod status;
#[cfg(feature = "otel")]
mod telemetry;
mod tls;
mod todos;

use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket::http::Status;
use rocket::{Build, Rocket, catch, catchers};
use rocket_db_pools::Database;
use sqlx::migrate;

use crate::db::{self, Migrations, UrlPool};
use crate::tx::{bounded, traced};
use crate::{Problem, Settlement, aggregate, problem_catchers};

pub use self::log::{Log, start_log};

use self::changes::Changes;
use self::config::Config;
use self::decorate::named;
use self::error::Error;
use self::metrics::Metrics;

/// Todos. SQLite or Postgres, as `databases.main.url` says.
#[derive(Database)]
#[database("main")]
pub struct Main(UrlPool);

/// One line for every change. SQLite or Postgres, as `databases.audit.url` says.
#[derive(Database)]
#[database("audit")]
pub struct Audit(UrlPool);

/// The service, configured by `Rocket.toml` and `ROCKET_*`, ready to launch.
pub fn rocket() -> Rocket<Build> {
    service(rocket::Config::figment())
}

/// The service, configured by `figment`.
pub fn service(figment: Figment) -> Rocket<Build> {
    let routes = [
        named("todos", todos::routes()),
        named("aggregates", aggregates::routes()),
        named("leases", admin::only(leases::routes())),
        named("audit", audit::routes()),
        named("registry", admin::only(status::inside())),
        named("registry", admin::only(console::routes())),
        named("metrics", admin::only(metrics::routes())),
        named("health", status::routes()),
        named("downstream", downstream::routes()),
        named("pages", site::routes()),
        named("pages", admin::only(site::inside())),
        named("changes", changes::routes()),
        named("contract", openapi::routes()),
    ];
    let routes = methods::complete(routes.into_iter().flatten().collect());
    let routes = faults::around(console::watched(routes));
    let routes = bounded(
        routes,
        config::handler_timeout(&figment).unwrap_or_default(),
    );
    #[cfg(feature = "otel")]
    let routes = telemetry::continued(routes);
    let metrics = Metrics::default();
    let changes = Changes::default();

    rocket::custom(figment)
        .attach(db::init::<Main>().migrations(main_migrations()))
        .attach(db::init::<Audit>().migrations(audit_migrations()))
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
        .attach(AdHoc::try_on_ignite("Configuration", Config::manage))
        .attach(cors::Cors)
        .attach(site::shield())
        .manage(changes)
        .manage(metrics)
        .mount("/", traced(routes))
        .register("/", problem_catchers())
        .register("/", catchers![no_such_address])
}

/// What Rocket says where a part of the path is not of its type: `/todos/x`. Bodies that break a
/// rule are answered by their handlers.
#[catch(422)]
fn no_such_address() -> Problem {
    let detail = "There is nothing at this address.";
    Problem::new(Status::NotFound, "not-found", detail)
}

fn main_migrations() -> Migrations {
    Migrations::new()
        .sqlite(migrate!("migrations/main/sqlite"))
        .postgres(migrate!("migrations/main/postgres"))
}

fn audit_migrations() -> Migrations {
    Migrations::new()
        .sqlite(migrate!("migrations/audit/sqlite"))
        .postgres(migrate!("migrations/audit/postgres"))
}
