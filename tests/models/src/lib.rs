//! Model checks: the library's own source files under many task schedules, with [shuttle].
//!
//! shuttle runs a small scenario thousands of times. At every lock, semaphore, channel and spawn it
//! decides which task continues. The files under test are included from the library by their path.
//! `Cargo.toml` replaces their `tokio` and `parking_lot` with shuttle's. Stand-ins
//! replace sqlx and the rest of the library. Some of them check invariants: a connection has one
//! user at a time, and a transaction ends only once.
//!
//! | module | files under test | stand-ins |
//! | --- | --- | --- |
//! | `lock` | `rocket_tx_aggregates/src/lock/gate.rs` | none |
//! | `db::sqlite` | `rocket_tx/src/db/sqlite/writer.rs` | SQLite, the watch, the log and its sync |
//! | `db::postgres` | `rocket_tx/src/db/postgres/{session,sessions}.rs` | Postgres, the wire format of the proof |
//! | `tx` | the files of `rocket_tx/src/tx/registry/` that `tx/registry.rs` includes | pools, settlement, the rest of a request |
//!
//! Not covered: `std` atomics, because shuttle does not switch tasks at them; and time, which does
//! not pass. A timeout is modelled by a future that is dropped half-way.
//!
//! A failure prints the schedule that led to it. `SHUTTLE_RANDOM_SEED` selects other schedules.
//!
//! [shuttle]: https://docs.rs/shuttle

#![allow(
    dead_code,
    missing_docs,
    // The stand-ins have the same methods as the types that they replace.
    clippy::len_without_is_empty,
    clippy::new_without_default
)]

extern crate self as sqlx;
extern crate self as sqlx_core;
extern crate self as tokio_util;

pub mod db;
pub mod lock;
mod schedule;
mod sqlx_stand_in;
mod tracker;
pub mod tx;

pub use schedule::{dropped_after, with_all_schedulers, with_random_scheduler};
pub use sqlx_stand_in::*;
pub use tracker::task;
