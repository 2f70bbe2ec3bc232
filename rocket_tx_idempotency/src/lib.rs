//! `Idempotency-Key` for services that use [`rocket_tx`]: a request that is sent twice is done once.
//!
//! A client whose connection broke does not know whether its request was done. With a key, it sends
//! the same request again: if the first one was committed, the client receives the response of the
//! first one, and otherwise the request is done now. The key is a row in the request's own
//! transaction, so after a crash both the work and the row are there, or neither. See
//! [the draft of the header](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/).
//!
//! ```no_run
//! use rocket_tx::db::{self, SqlitePool};
//! use rocket_tx::rocket_db_pools::{self, Database};
//! use rocket_tx::{Begin, Error, Settlement, problem_catchers};
//! use rocket_tx_idempotency::{self as idempotency, Bytes, idempotent};
//!
//! #[derive(Database)]
//! #[database("main")]
//! struct Main(SqlitePool);
//!
//! // Nothing in the handler is about keys. The data guard takes the fingerprint of long bodies.
//! #[rocket::post("/notes", data = "<text>")]
//! async fn create(text: Bytes, main: Begin<Main>) -> Result<(), Error> {
//!     let mut tx = main.begin().await?;
//!     sqlx::query("INSERT INTO notes VALUES ($1)").bind(text.0).execute(&mut *tx).await?;
//!     Ok(())
//! }
//!
//! #[rocket::launch]
//! fn launch() -> _ {
//!     rocket::build()
//!         .attach(db::init::<Main>())
//!         .attach(idempotency::init::<Main>().shared_keys()) // one line for the database
//!         .attach(Settlement::new())
//!         .mount("/", idempotent::<Main>(rocket::routes![create])) // one word for the routes
//!         .register("/", problem_catchers())
//! }
//! ```
//!
//! # What happens
//!
//! | the key | the client receives |
//! | --- | --- |
//! | is new, or its request was rolled back | the response of the handler, which runs now |
//! | was committed with the same request | the stored response, with `Idempotency-Replayed: true` |
//! | was committed with other content (query, content type, body) | 422 |
//! | belongs to a request that is still being served | 409 with `Retry-After`, after a short wait |
//! | was committed, and the response is too large to be stored, or a stream | 409 with the status and the `Location` of that response |
//! | is missing where it is required, is malformed, or was sent twice in one request | 400 |
//!
//! - A key belongs to one [caller](Initializer::caller), one method and one path.
//! - A response is stored only if its request is committed. A failure that rolls back is not stored:
//!   nothing has happened, so the next attempt runs the handler. A failure that the handler commits
//!   (`Commit`) is stored.
//! - Headers of one connection or one request are not stored: hop-by-hop headers, `Date`,
//!   `Set-Cookie`, `X-Request-Id`, and those of CORS.
//! - When a stored response is sent, the handler and its guards do not run, and hooks of the first
//!   request do not run again. See [`Initializer::caller`] for authentication.
//! - Responses are stored only in the database, so every process that uses it can send them.
//! - In the database with the keys, nothing is done twice. If a request writes to other databases
//!   too, and they do not commit atomically, and the process is killed between two COMMITs, then a
//!   repetition does their part again.
//!
//! # Order
//!
//! A request with a key looks for a stored response before its handler runs, as soon as its body is
//! known, through a connection that it returns at once. It claims the key as the first statement of
//! its transaction, and stores the response as one of the last. The database with the keys commits
//! after all others, so a stored response means that everything was committed.
//!
//! No connection is held while a slow client sends its body, if handlers with a body take
//! [`Begin`](rocket_tx::Begin), as they should anyway.
//!
//! # Features
//!
//! `sqlite` and `postgres` enable the same features of `rocket_tx`. Both are on by default. Keys are
//! compiled for all backends of `rocket_tx`, whichever package of a service has enabled them.

#![forbid(unsafe_code)]

mod body;
mod by_url;
mod current;
mod hash;
mod in_flight;
mod initializer;
mod key;
mod keyed;
mod problems;
mod resource;
mod routes;
mod rows;
mod stored;

pub use body::{BodyError, Bytes, read_body};
pub use current::derived_key;
pub use initializer::{Initializer, init};
pub use routes::{idempotent, required};
pub use rows::{KeyDatabase, KeyPool, KeyRows};
/// Re-exports of the crates whose types appear in the public interface of this crate.
pub use {rocket_tx, rocket_tx::sqlx};
