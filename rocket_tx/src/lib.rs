//! Request-scoped database transactions for [Rocket](rocket), on SQLite and Postgres.
//!
//! A handler takes a transaction as an argument and runs its statements in it. The handler does not
//! commit or roll back. The status of the response decides: a success commits, and a failure rolls
//! back everything that the request has begun, in every database. Both happen before the first byte
//! of the response leaves. **A response that says success means committed.**
//!
//! # Usage
//!
//! Declare each database, attach it with [`db::init`], attach [`Settlement`] once, and take guards
//! in the handlers:
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
//! If a handler takes a guard, but the guard's database or [`Settlement`] is not attached, the
//! launch fails. The log names the line that is missing in the launch code.
//!
//! | guard | use it in |
//! | --- | --- |
//! | [`Tx<D>`](Tx) | handlers without a body. The transaction has begun when the handler starts. |
//! | [`Begin<D>`](Begin) | handlers with a body. The handler begins the transaction itself, after the body has been read. |
//! | [`Read<D>`](Read) | handlers that only read. There is no transaction, and the response body may stream from the connection. |
//! | [`&Outstanding`](Outstanding) | handlers that join a resource to the commit, doom the request (force a rollback), or add a hook. |
//!
//! # Commit or rollback
//!
//! When the response is ready, [`Settlement`] decides whether to commit or to roll back. This
//! decision is called the verdict. The first of these rules that applies decides:
//!
//! - **Something went wrong: rollback.** A guard still holds a transaction, code of the request
//!   panicked, a guard of this library failed, the request was [doomed](Outstanding::doom), or the
//!   status is below 200.
//! - **The handler decided by its return type.** [`Commit`] commits if the status is below 500.
//!   [`Rollback`] rolls back.
//! - **The [veto](Settlement::veto) of the service applies: rollback.**
//! - **The status of the response decides.** 200 to 399 commits, 400 and above rolls back.
//!
//! [`Reason`](tx::Reason) lists all rules one by one, in the order in which they are checked.
//!
//! ```
//! use rocket::http::Status;
//! use rocket_tx::{Commit, Rollback};
//!
//! /// Commits the record of the attempt although the response is a failure.
//! #[rocket::post("/login")]
//! fn login() -> Commit<Status> {
//!     Commit(Status::Unauthorized)
//! }
//!
//! /// Rolls everything back although the response is a success.
//! #[rocket::post("/import?dry_run")]
//! fn dry_run() -> Rollback<&'static str> {
//!     Rollback("would import 3 rows")
//! }
//! ```
//!
//! The status of a catcher's response counts like that of any other response. For example, a
//! catcher that redirects to a login page responds with 303, and 303 commits.
//!
//! After a rollback because something went wrong (the first rule), the client never receives a
//! success or a redirect: an error response replaces it. After a rollback, the client can receive a
//! success or a redirect only if the service chose that, by [`Rollback`] or by the veto.
//!
//! # Several databases
//!
//! A request may have a transaction in each of several databases. All of them get the same verdict.
//! If one database has committed and a later one refuses, the client receives [`Error::Partial`].
//!
//! Take the databases in the order in which they are attached. A request that holds a later
//! database does not wait for an earlier one: it gets a connection that is free at once, or fails
//! with a 503 that the client may retry. Two requests therefore never wait for each other.
//!
//! ```
//! # use rocket_tx::db::UrlPool;
//! # use rocket_tx::rocket_db_pools::{self, Database};
//! # use rocket_tx::{Error, Tx, with_backend};
//! #[derive(Database)]
//! #[database("main")]
//! struct Main(UrlPool); // SQLite or Postgres: the URL decides
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
//! # sqlx
//!
//! Statements are those of sqlx 0.9. Its macros, such as `migrate!` and `#[derive(FromRow)]`, need
//! `sqlx = "0.9"` in your own `Cargo.toml`. `query!` checks a statement against one backend, so it
//! does not work with [`UrlPool`](db::UrlPool).
//!
//! # Errors
//!
//! [`Error`] lists the possible failures and the HTTP status of each. In a handler, `?` converts a
//! [`sqlx::Error`] into an [`Error`] by its SQLSTATE or SQLite result code: a busy database becomes
//! a 503 with `Retry-After`, a violated constraint a 409, a missing row a 404. The response is
//! `application/problem+json`, without SQL, paths or values. [`problem_catchers`] give Rocket's own
//! errors the same form.
//!
//! # Work with and after the commit
//!
//! A [`Resource`] can refuse the commit, and is committed or rolled back together with the
//! transactions. A hook runs after the commit:
//!
//! ```
//! # use rocket_tx::{Error, Outstanding};
//! #[rocket::post("/orders")]
//! fn order(outstanding: &Outstanding) -> Result<(), Error> {
//!     outstanding.after_commit(async { println!("tell the warehouse") })
//! }
//! ```
//!
//! An [`Observer`] is called at every step, for example to build metrics or a live view.
//!
//! # Features
//!
//! | feature | adds |
//! | --- | --- |
//! | `sqlite` | [`db::SqlitePool`] |
//! | `postgres` | [`db::PostgresPool`] |
//! | `testing` | the module `testing`: a test gets databases of its own; for dev-dependencies |
//! | `utoipa` | schemas of the JSON that clients receive, for an OpenAPI document |
//!
//! `sqlite` and `postgres` are on by default. [`db::UrlPool`] needs at least one of them.
//!
//! # Modules
//!
//! | module | contents |
//! | --- | --- |
//! | [`tx`] | registry, guards, verdict, settlement, hooks |
//! | [`db`] | pools: opening, migrating and closing databases, and their connections and transactions |
//! | `testing` | launches a service for one test, with databases of its own (with the feature `testing`) |
//! | [`extend`] | interfaces for libraries that build on this one, such as `rocket_tx_aggregates` |

#![forbid(unsafe_code)]

// Without a backend this is the only error, because nothing else is compiled.
#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!(
    "rocket_tx has no backend: enable the feature `sqlite` or `postgres`, for example \
     `rocket_tx = { version = \"0.1\", default-features = false, features = [\"sqlite\"] }`"
);

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod db;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod extend;
#[cfg(all(feature = "testing", any(feature = "sqlite", feature = "postgres")))]
pub mod testing;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod tx;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use tx::{
    Begin, Commit, Error, Observer, Outstanding, Problem, Read, ReadOnly, RepeatableRead,
    RequestId, Resource, Rollback, Serializable, Settlement, Tx, problem_catchers,
};
/// The crates whose types appear in this crate's public interface, at the versions that it uses.
///
/// The macros of sqlx (`query!`, `query_as!`, `migrate!`, `#[derive(FromRow)]`, `#[derive(Type)]`)
/// expand to paths that begin with `::sqlx`. They do not work through this re-export: a package that
/// uses them must itself depend on `sqlx` 0.9.
pub use {rocket_db_pools, sqlx};
