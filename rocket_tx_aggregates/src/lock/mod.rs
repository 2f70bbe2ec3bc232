//! Locks: the right to write an aggregate.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `async_lock` | [`AsyncLock`], [`AsyncLockManager`], [`Hold`]: the interface of every lock |
//! | `memory` | locks that live in this process alone |
//! | `gate` | the process-local queue in front of a lease |
//! | `deadline` | how long to wait |
//! | `key` | one key: its gate, and where its lease is |
//! | `acquire` | how the lease of a key is taken |
//! | `manual` | [`ManualLock`]: locking and unlocking by hand, over any [`Hold`] |
//! | `manager` | [`LeaseLockManager`]: the gate first, then the row |
//! | `lease` | [`Lease`]: a lease of this process; renewal and release |
//! | `store` | [`LeaseStore`]: the rows of `aggregate_locks`, for one backend |
//! | `sqlite`, `postgres` | the rows in a SQLite file, and in Postgres |
//! | `sql`, `sql/` | the statements: those of both backends, and a folder for each |
//! | `fencing` | where fencing tokens come from on Postgres, and why they grow |
//! | `by_url` | the rows in whichever of them a URL names |
//! | `listener` | waking waiters, by LISTEN and NOTIFY |
//! | `stats` | [`LeaseStats`]: counters |
//! | `keyed` | one object for each key, while any reference to it exists |
//!
//! A lease ends by itself. A holder that is stopped for longer than its time to live finds, when it
//! goes on, that another one has taken over. The fence makes that harmless: a commit deletes the
//! lease row in the same transaction, and rolls back if the row is not there.

mod acquire;
mod async_lock;
mod by_url;
mod deadline;
mod error;
#[cfg(feature = "postgres")]
mod fencing;
mod gate;
mod key;
mod keyed;
mod lease;
#[cfg(feature = "postgres")]
mod listener;
mod manager;
mod manual;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod stats;
mod store;

pub use async_lock::{AsyncLock, AsyncLockManager, Hold};
pub use by_url::{UrlLeases, UrlLockManager};
pub use error::LockError;
pub use lease::Lease;
pub use manager::{LeaseLock, LeaseLockManager};
pub use manual::ManualLock;
pub use memory::{InMemoryAsyncLock, InMemoryAsyncLockManager, InMemoryHold};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresLeases, PostgresLockManager};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteLeases, SqliteLockManager};
pub use stats::LeaseStats;
pub use store::{
    Attempt, Claim, Exclusion, Fence, LeasePool, LeaseRow, LeaseStore, ReleaseOutcome, Token,
};

pub(crate) use async_lock::in_order;
pub(crate) use deadline::Deadline;
pub(crate) use keyed::Keyed;
pub(crate) use sql::statement;
