//! Event-sourced aggregates and durable locks for services that use [`rocket_tx`].
//!
//! A lease in the database lets one request at a time write an aggregate, across all processes. The
//! request's own transaction stores the events, so a successful response means that they are
//! committed.
//!
//! | module | contents |
//! | --- | --- |
//! | [`mod@aggregate`] | events, repositories, and the guard [`Aggregates`](aggregate::Aggregates) |
//! | [`lock`] | locks: in memory, and durable leases in a database |
//!
//! # Features
//!
//! | feature | adds |
//! | --- | --- |
//! | `sqlite` | leases and events in SQLite |
//! | `postgres` | leases and events in Postgres |
//! | `testing` | the module `testing`: an aggregate from stored events, to test upcasters |
//! | `utoipa` | OpenAPI schemas of the types that appear in responses |
//!
//! Both backends are on by default.

#![forbid(unsafe_code)]

// Without a backend this is the only error, because nothing else is compiled.
#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!(
    "rocket_tx_aggregates has no backend: enable the same of its features `sqlite` and `postgres` \
     as of rocket_tx, for example `rocket_tx_aggregates = { version = \"0.1\", \
     default-features = false, features = [\"sqlite\"] }`"
);

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod aggregate;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod lock;

#[cfg(feature = "testing")]
pub use aggregate::testing;

/// Re-exports of the crates whose types appear in the public interface of this crate.
pub use {rocket_tx, rocket_tx::sqlx};
