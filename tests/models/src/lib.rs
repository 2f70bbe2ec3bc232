//! What a scheduler could do wrong: the library's own source files under [shuttle].
//!
//! shuttle runs a small scene thousands of times and decides at every lock, semaphore, channel and
//! spawn which task goes on. The files under test are those of the library, included by their path;
//! `tokio` and `parking_lot` are shuttle's here, by the names in `Cargo.toml`. What they talk to is
//! a stand-in that checks what must hold: a connection that knows its user, a transaction that knows
//! whether it is open.
//!
//! | module | real | stand-ins |
//! | --- | --- | --- |
//! | `lock` | `src/lock/gate.rs` | none |
//! | `db::sqlite` | `src/db/sqlite/writer.rs` | SQLite, the watch, the log and its sync |
//! | `db::postgres` | `src/db/postgres/{session,sessions}.rs` | Postgres, the proof's wire format |
//! | `tx` | `src/tx/{outstanding,checkout,lent,collected,require,mode}.rs` | pools, settlement, the rest of a request |
//!
//! Not tried: `std` atomics, of which each is one step here; time, which does not pass, except that
//! a future is dropped half-way as a timeout drops it.
//!
//! A failure prints the schedule that led to it; `SHUTTLE_RANDOM_SEED` draws other ones.
//!
//! [shuttle]: https://docs.rs/shuttle

#![allow(
    dead_code,
    missing_docs,
    // As what they stand in for.
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

pub use schedule::{at_random, dropped_after, everywhere};
pub use sqlx_stand_in::*;
pub use tracker::task;
