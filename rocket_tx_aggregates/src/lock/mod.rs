//! Locks: the right to write an aggregate.
//!
//! A durable lock is a *lease*: a row in the table `aggregate_locks` that expires unless its holder
//! renews it. A *gate* is the queue of one process in front of a lease.
//!
//! | file | contents |
//! | --- | --- |
//! | `async_lock` | [`AsyncLock`], [`AsyncLockManager`], [`Hold`]: the interface of all locks |
//! | `memory` | locks within this process only |
//! | `gate` | the queue of one process in front of a lease |
//! | `deadline` | the time limit of a wait |
//! | `key` | the state of one key, shared by the tasks of this process |
//! | `acquire` | taking the lease of a key |
//! | `acquire_all` | taking the leases of several keys with one statement |
//! | `manual` | [`ManualLock`]: explicit locking and unlocking, for any [`Hold`] |
//! | `manager` | [`LeaseLockManager`]: leases by key, the gate first and then the row |
//! | `lease` | [`Lease`]: a lease that this process holds, and its release |
//! | `renewal` | the renewal of leases while they are held |
//! | `run_to_end` | statements that run to their end, also if no task waits for them any more |
//! | `store` | [`LeaseStore`]: the interface to the rows of `aggregate_locks` |
//! | `sqlite`, `postgres` | the rows in a SQLite file and in Postgres |
//! | `sql`, `sql/` | the SQL statements: those for both backends, and a folder for each backend |
//! | `fencing` | the source of fencing tokens on Postgres, and why they increase |
//! | `by_url` | the rows in the database that a URL names |
//! | `listener` | waking waiters on Postgres, with LISTEN and NOTIFY |
//! | `file_waiters` | waking waiters on SQLite, with the notifications of the file system |
//! | `stats` | [`LeaseStats`]: counters |
//! | `keyed` | a map from keys to shared objects, each kept while a reference to it exists |
//!
//! A lease expires without any action of its holder. If a process is stopped for longer than the
//! time to live, another holder may take its lease over. When the stopped process continues, it may
//! still try to write. The *fence* makes that harmless: the transaction that writes also deletes
//! the lease row, and rolls back if the row is not there.

mod acquire;
mod acquire_all;
mod async_lock;
mod by_url;
mod deadline;
mod error;
#[cfg(postgres)]
mod fencing;
#[cfg(sqlite)]
mod file_waiters;
mod gate;
mod key;
mod keyed;
mod lease;
#[cfg(postgres)]
mod listener;
mod manager;
mod manual;
mod memory;
#[cfg(postgres)]
mod postgres;
mod renewal;
mod run_to_end;
mod sql;
#[cfg(sqlite)]
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
#[cfg(postgres)]
pub use postgres::{PostgresLeases, PostgresLockManager};
#[cfg(sqlite)]
pub use sqlite::{SqliteLeases, SqliteLockManager};
pub use stats::LeaseStats;
pub use store::{Fence, LeasePool, LeaseRow, LeaseStore, Token};

#[doc(hidden)] // only in the hidden methods of `LeaseStore`, which is sealed
pub use store::{Attempt, Claim, Exclusion, Look, ReleaseOutcome};

pub(crate) use async_lock::in_order;
pub(crate) use deadline::Deadline;
pub(crate) use keyed::Keyed;
pub(crate) use manager::LEAST_TTL;
pub(crate) use sql::statement;
#[cfg(sqlite)]
pub(crate) use store::{keys_and_tokens, outcomes_of};
