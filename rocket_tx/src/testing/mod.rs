//! Testing a service: each test gets databases of its own. With the feature `testing`.
//!
//! [`launch`] launches a service for one test. Each database that the service attaches with
//! [`db::init`](crate::db::init) is a new copy with the tables that a launch creates: a file on
//! SQLite, a database on Postgres. The copy is removed at the end of the test, also after a panic.
//! The configured databases are not written to. Tests run in parallel.
//!
//! ```
//! use rocket::http::Status;
//! use rocket_tx::db::{self, Migrations, SqlitePool};
//! use rocket_tx::rocket_db_pools::{self, Database};
//! use rocket_tx::{Error, Settlement, Tx, testing};
//! # use rocket::{Build, Rocket, post, routes};
//!
//! #[derive(Database)]
//! #[database("main")]
//! struct Main(SqlitePool);
//!
//! #[post("/notes/<text>")]
//! async fn add(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
//!     sqlx::query("INSERT INTO notes (text) VALUES ($1)").bind(text).execute(&mut *tx).await?;
//!     match text {
//!         "secret" => Err(Error::NotFound),
//!         _ => Ok(Status::Created),
//!     }
//! }
//!
//! fn rocket() -> Rocket<Build> {
//!     let migrations = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/notes"));
//! #   let rocket = rocket::custom(rocket::Config::figment().merge(("databases.main.url", "sqlite:main.db")));
//! #   #[cfg(any())]
//!     let rocket = rocket::build();
//!     rocket
//!         .attach(db::init::<Main>().migrations(migrations))
//!         .attach(Settlement::new())
//!         .mount("/", routes![add])
//! }
//!
//! # /*
//! #[rocket::async_test]
//! # */
//! async fn a_failure_stores_nothing() {
//!     let app = testing::launch(rocket()).await;
//!     assert_eq!(app.post("/notes/milk").dispatch().await.status(), Status::Created);
//!     assert_eq!(app.post("/notes/secret").dispatch().await.status(), Status::NotFound);
//!
//!     let mut main = app.read::<Main>().await;
//!     let notes: Vec<String> =
//!         sqlx::query_scalar("SELECT text FROM notes").fetch_all(&mut *main).await.unwrap();
//!     assert_eq!(notes, ["milk"]);
//!     app.assert_nothing_outstanding();
//! }
//! # rocket::async_test(a_failure_stores_nothing());
//! ```
//!
//! The commit is real: hooks run, conflicting requests get their 409 or 503, and other connections
//! see what is committed.
//!
//! # Requirements
//!
//! On Postgres, the role of the configured URL needs `CREATEDB`, and the server must be version 13
//! or newer, without a pooler in front of it. The page `docs/testing.md` in the repository says how
//! the databases are made and removed.
//!
//! # Panics
//!
//! This module is for tests. Its functions panic with a message that says what to do.

mod app;
mod databases;

use rocket::figment::value::Dict;
use rocket::local::asynchronous::Client;
use rocket::{Build, Rocket};

pub use app::App;
pub use databases::{Databases, Reader};

use crate::db::{IN_TESTS, OwnDatabases};

/// Launches a service for one test, with databases of its own.
///
/// The databases are dropped together with the [`App`].
///
/// # Panics
///
/// If the launch fails. The message has the reason if it is about a database of this library. Other
/// reasons are in the log above it.
pub async fn launch(rocket: Rocket<Build>) -> App {
    let (rocket, databases) = isolated(rocket);
    match Client::tracked(rocket).await {
        Ok(client) => App::new(client, databases),
        Err(error) => refused(error, &databases),
    }
}

/// Creates the databases of a service and does not launch it, for a test that runs the service as a
/// process of its own, or between whose service and database is a proxy.
///
/// The databases have the tables that a launch creates. They are dropped together with the returned
/// [`Databases`], so keep it until the end of the test. Fairings of the service that run at ignition
/// do run.
///
/// ```no_run
/// use std::process::Command;
///
/// use rocket_tx::testing;
/// # use rocket::{Build, Rocket};
/// # use rocket_tx::db::SqlitePool;
/// # use rocket_tx::rocket_db_pools::{self, Database};
/// # #[derive(Database)]
/// # #[database("main")]
/// # struct Main(SqlitePool);
/// # fn rocket() -> Rocket<Build> { rocket::build() }
///
/// # /*
/// #[rocket::async_test]
/// # */
/// async fn the_program_starts() {
///     let databases = testing::databases(rocket()).await;
///     let configured = format!(r#"{{main={{url="{}"}}}}"#, databases.url::<Main>());
///     let mut process = Command::new("target/debug/blog")
///         .env("ROCKET_DATABASES", configured)
///         .spawn()
///         .unwrap();
///     // Requests over the network follow here.
///     process.kill().unwrap();
///     process.wait().unwrap();
/// }
/// # rocket::async_test(the_program_starts());
/// ```
///
/// # Panics
///
/// As [`launch`].
pub async fn databases(rocket: Rocket<Build>) -> Databases {
    let (rocket, databases) = isolated(rocket);
    match rocket.ignite().await {
        Ok(rocket) => databases.close_connections(&rocket).await,
        Err(error) => refused(error, &databases),
    }
    databases
}

/// Panics with the reason why a launch failed.
fn refused(error: rocket::Error, databases: &Databases) -> ! {
    let kind = error.kind().to_string();
    match databases.refusals() {
        reason if reason.is_empty() => panic!("{kind}; the log above says why"),
        reason => panic!("{kind}: {reason}"),
    }
}

/// Gives a service databases of its own, for a test that launches the service itself: on a real
/// socket, with another client, or to see the launch fail.
///
/// The databases are created while the service launches. They are dropped together with the
/// returned [`Databases`], so keep it until the end of the test.
///
/// ```
/// # rocket::async_test(async {
/// use rocket::local::asynchronous::Client;
/// use rocket_tx::testing;
///
/// let (rocket, databases) = testing::isolated(rocket::build());
/// let client = Client::untracked(rocket).await.unwrap();
/// # drop(client);
/// drop(databases);
/// # });
/// ```
pub fn isolated(rocket: Rocket<Build>) -> (Rocket<Build>, Databases) {
    let mut figment = rocket.figment().clone();
    let configured: Dict = figment.extract_inner("databases").unwrap_or_default();
    for name in configured.keys() {
        figment = figment.merge((format!("databases.{name}.{IN_TESTS}"), true));
    }
    let own = OwnDatabases::default();
    let rocket = rocket.configure(figment).manage(own.clone());
    (rocket, Databases::new(own))
}
