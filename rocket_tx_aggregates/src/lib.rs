//! Event-sourced aggregates and durable locks for services that use [`rocket_tx`].
//!
//! An aggregate that many processes write is held by a lease in the database, and its events are
//! stored by the request's own transaction: a response that says success means that they are kept.
//!
//! | | |
//! | --- | --- |
//! | [`mod@aggregate`] | events, repositories, and the guard [`Aggregates`](aggregate::Aggregates) |
//! | [`lock`] | locks: in memory, and durable leases in a database |
//!
//! # Features
//!
//! | feature | |
//! | --- | --- |
//! | `sqlite` | leases and events in SQLite |
//! | `postgres` | leases and events in Postgres |
//! | `utoipa` | schemas of what clients see, for an OpenAPI document |
//!
//! The backends are on by default.

#![forbid(unsafe_code)]

pub mod aggregate;
pub mod lock;

/// The crates whose types are part of this one's interface.
pub use {rocket_tx, rocket_tx::sqlx};
