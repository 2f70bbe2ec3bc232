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
//! | `sqlite` | the feature `sqlite` of `rocket_tx` |
//! | `postgres` | the feature `postgres` of `rocket_tx` |
//! | `testing` | the module `testing`: an aggregate from stored events, to test upcasters |
//! | `utoipa` | OpenAPI schemas of the types that appear in responses |
//!
//! Both backends are on by default. Leases and events are compiled for all backends of `rocket_tx`,
//! whichever package of a service has enabled them.

#![forbid(unsafe_code)]

pub mod aggregate;
pub mod lock;

#[cfg(feature = "testing")]
pub use aggregate::testing;

/// Re-exports of the crates whose types appear in the public interface of this crate.
pub use {rocket_tx, rocket_tx::sqlx};
