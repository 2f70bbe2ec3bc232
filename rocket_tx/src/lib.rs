//! Request-scoped transactions for [Rocket](rocket) that tell the truth.
//!
//! A handler takes a transaction as an argument and forgets about it. What the client is told
//! decides the database: success commits, failure rolls back everything outstanding, in every
//! database, before the first byte of the answer leaves. **A response that says success means
//! committed.**
//!
//! # Usage
//!
//! ```no_run
//! use rocket::http::Status;
//! use rocket_tx::db::{self, Migrations, SqlitePool};
//! use rocket_tx::rocket_db_pools::{self, Database};
//! use rocket_tx::{Begin, Error, Read, Settlement, problem_catchers};
//!
//! #[derive(Database)]
//! #[database("main")] // databases.main.url in Rocket.toml
//! struct Main(SqlitePool);
//!
//! #[rocket::post("/todos", data = "<title>")]
//! async fn create(title: &str, main: Begin<Main>) -> Result<Status, Error> {
//!     let mut tx = main.begin().await?;
//!     sqlx::query("INSERT INTO todos (title) VALUES ($1)").bind(title).execute(&mut *tx).await?;
//!     Ok(Status::Created)
//! }
//!
//! #[rocket::get("/todos/count")]
//! async fn count(mut read: Read<Main>) -> Result<String, Error> {
//!     let count: i64 = sqlx::query_scalar("SELECT count(*) FROM todos").fetch_one(&mut *read).await?;
//!     Ok(count.to_string())
//! }
//!
//! #[rocket::launch]
//! fn launch() -> _ {
//!     rocket::build()
//!         .attach(db::init::<Main>().migrations(Migrations::new()))
//!         .attach(Settlement::new())
//!         .mount("/", rocket::routes![create, count])
//!         .register("/", problem_catchers())
//! }
//! ```
//!
//! A service that forgets to attach the database or [`Settlement`] does not launch, and is told
//! which line is missing.
//!
//! | guard | for |
//! | --- | --- |
//! | [`Tx<D>`](Tx) | handlers without a body: the transaction has begun when the handler starts |
//! | [`Begin<D>`](Begin) | handlers with a body: it begins when asked, after the body has been read |
//! | [`Read<D>`](Read) | handlers that only read: no transaction, and a body may stream from it |
//! | [`&Outstanding`](Outstanding) | resources, doom, hooks |
//!
//! # What decides
//!
//! The status of the response: 200 to 399 commits, 400 and above rolls back. Before it come, in this
//! order, a guard that outlived its handler, a panic, a guard that failed, a doom, the handler's own
//! word, and the service's veto; see [`tx::Reason`]. The handler's word is its return type:
//!
//! ```
//! use rocket::http::Status;
//! use rocket_tx::{Commit, Rollback};
//!
//! /// The attempt stays counted although the answer is a failure.
//! #[rocket::post("/login")]
//! fn login() -> Commit<Status> {
//!     Commit(Status::Unauthorized)
//! }
//!
//! /// Nothing is kept although the answer is a success.
//! #[rocket::post("/import?dry_run")]
//! fn dry_run() -> Rollback<&'static str> {
//!     Rollback("would import 3 rows")
//! }
//! ```
//!
//! A catcher's answer is judged by its status like any other: one that redirects to a login page
//! answers 303, and 303 commits. After a panic or a guard that failed a success or a redirect does not
//! leave: the client is told of the failure. Only [`Rollback`] and the veto leave a success standing
//! that was rolled back.
//!
//! # Several databases
//!
//! Every database that a request has touched is settled with the others. A request takes them in
//! the order in which they are attached; out of order it gets what is free, or a 503 that may be
//! retried, so that two requests never wait for each other.
//!
//! ```
//! # use rocket_tx::db::UrlPool;
//! # use rocket_tx::rocket_db_pools::{self, Database};
//! # use rocket_tx::{Error, Tx, with_backend};
//! #[derive(Database)]
//! #[database("main")]
//! struct Main(UrlPool); // sqlite: or postgres:, as the URL says
//!
//! #[derive(Database)]
//! #[database("audit")]
//! struct Audit(UrlPool);
//!
//! #[rocket::delete("/todos/<id>")]
//! async fn delete(id: i64, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<(), Error> {
//!     with_backend!(main, |db| {
//!         sqlx::query("DELETE FROM todos WHERE id = $1").bind(id).execute(db).await?;
//!     });
//!     with_backend!(audit, |db| {
//!         sqlx::query("INSERT INTO audit (what) VALUES ('deleted')").execute(db).await?;
//!     });
//!     Ok(())
//! }
//! ```
//!
//! # Errors
//!
//! [`Error`] is the table of what can go wrong, each with the status that a client is told. It is
//! made from [`sqlx::Error`] by SQLSTATE and SQLite result code, so that `?` in a handler does the
//! right thing: busy is a 503 with `Retry-After`, a constraint a 409, a missing row a 404. As a
//! responder it is `application/problem+json`, without SQL, paths or values. So are Rocket's own
//! errors with [`problem_catchers`].
//!
//! # Before and after
//!
//! Whatever else must happen with the commit, or not at all, joins as a [`Resource`]; what may
//! happen after it is a hook:
//!
//! ```
//! # use rocket_tx::{Error, Outstanding};
//! #[rocket::post("/orders")]
//! fn order(outstanding: &Outstanding) -> Result<(), Error> {
//!     outstanding.after_commit(async { println!("tell the warehouse") })
//! }
//! ```
//!
//! An [`Observer`] is told of every step, which is what metrics and a live view are made of.
//!
//! # Features
//!
//! | feature | |
//! | --- | --- |
//! | `sqlite` | [`db::SqlitePool`] |
//! | `postgres` | [`db::PostgresPool`] |
//! | `utoipa` | schemas of what clients see, for an OpenAPI document |
//!
//! The backends are on by default. [`db::UrlPool`] is there with either of them.
//!
//! # Rooms
//!
//! | | |
//! | --- | --- |
//! | [`tx`] | registry, guards, verdict, settlement, hooks |
//! | [`db`] | how a database is opened, lent and closed |
//! | [`extend`] | for libraries that are built on this one, such as `rocket_tx_aggregates` |

#![forbid(unsafe_code)]

pub mod db;
pub mod extend;
pub mod tx;

pub use tx::{
    Begin, Commit, Error, Observer, Outstanding, Problem, Read, RequestId, Resource, Rollback,
    Settlement, Tx, problem_catchers,
};
/// The crates whose types are part of this one's interface, at the versions that it speaks.
pub use {rocket_db_pools, sqlx};
