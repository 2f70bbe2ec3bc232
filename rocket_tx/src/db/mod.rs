//! Databases: how they are opened, used through pooled connections, and closed.
//!
//! | file | contents |
//! | --- | --- |
//! | `pool` | [`TransactionPool`]: the interface of a pool from which `tx` acquires connections |
//! | `transaction` | [`Session`] and [`Transaction`]: an open transaction with its connection |
//! | `durability` | [`Durability`]: the wait after COMMIT until the commit survives a power cut |
//! | `ending` | ends a transaction from outside its session |
//! | `sqlite` | one writer and several readers per file, and the sync of the write-ahead log |
//! | `postgres` | the pool for transactions, the read-only pool, and the checks of their sessions |
//! | `scheme` | the scheme of a URL: which backend it names |
//! | `by_url` | [`UrlPool`]: the URL selects the backend, and each query is written once |
//! | `atomic` | two-phase commit over several databases |
//! | `recovery` | finishes prepared transactions that are in doubt |
//! | `initializer` | [`init`]: the fairing that attaches a database |
//! | `advice` | warnings in the debug profile |
//! | `arrival` | the remote address of a request, before other fairings change it |
//! | `executor` | sqlx's trait `Executor` for guards |
//! | `health` | Postgres: log messages when a database becomes unavailable and when it recovers |
//! | `readiness` | [`NotReady`]: whether a database can serve now, for readiness probes |
//! | `error_class` | the meaning of database errors |
//! | `current_task`, `enclosing` | which request, and which transactions outside of requests, the current code belongs to |
//! | `full_jitter` | the pauses between attempts |
//! | `testing` | databases that belong to one test, copied from templates |
//! | `config`, `config_source`, `error` | the settings of a database, their place in `Rocket.toml`, and the errors at launch |
//!
//! This module does not decide what the outcome of a transaction means for a response; that is
//! decided in [`tx`](crate::tx).

mod advice;
mod arrival;
mod atomic;
mod by_url;
mod config;
mod config_source;
mod current_task;
mod durability;
mod enclosing;
mod ending;
mod error;
mod error_class;
mod executor;
mod full_jitter;
#[cfg(feature = "postgres")]
mod health;
mod initializer;
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
mod readiness;
mod recovery;
mod scheme;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "testing")]
mod testing;
mod transaction;

pub use by_url::{UrlConnection, UrlPool};
pub use config::ConfigDuration;
#[cfg(feature = "testing")]
pub(crate) use config::IN_TESTS;
pub use durability::Durability;
pub use error::{OpenError, PoolError};
pub use initializer::{Initializer, init};
pub use pool::{Attachment, Identity, Migrations, TransactionPool, TransactionalDatabase};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresPool, PostgresSession};
pub use readiness::NotReady;
#[cfg(feature = "sqlite")]
pub use sqlite::sqlite_open_retries;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqlitePool, SqliteSession};
pub use transaction::{
    Access, BeginOptions, CommitError, Isolation, RollbackError, Session, Transaction,
    TransactionGuard, TransactionOptions, WaitPolicy,
};

pub(crate) use advice::{Advice, Topic};
pub(crate) use arrival::Arrival;
pub(crate) use atomic::{
    AtomicDatabase, AtomicHandle, Decided, Decider, DeciderId, Decision, DecisionId, Finished,
    GlobalId, InDoubt, SetUp,
};
pub(crate) use config::Config;
#[doc(hidden)] // documented in `extend`, like the next ones
pub use config::setting;
pub(crate) use current_task::CurrentTask;
pub(crate) use enclosing::within;
pub(crate) use ending::{Ended, Ending};
#[doc(hidden)]
pub use error_class::ErrorClass;
pub(crate) use error_class::{Advised, WAITS_FOR_ITSELF, is_conflict};
#[doc(hidden)]
pub use executor::ExecutorSession;
pub(crate) use executor::executor;
pub(crate) use full_jitter::{FullJitter, Pauses};
pub(crate) use initializer::{AttachedDatabases, same_database};
pub(crate) use pool::{Backend, ConnectionOf, SessionOf};
#[cfg(feature = "postgres")]
#[doc(hidden)]
pub use postgres::{Limits, Liveness, OnReturn, Sessions, Settings};
pub(crate) use recovery::Recovery;
#[cfg(feature = "sqlite")]
#[doc(hidden)]
pub use sqlite::OneShotWriter;
#[cfg(feature = "sqlite")]
#[doc(hidden)]
pub use sqlite::is_sqlite_busy;
#[cfg(feature = "testing")]
pub(crate) use testing::OwnDatabases;
pub(crate) use transaction::{TransactionControl, TransactionId, work_in};
