//! How a database is opened, lent and closed.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `pool` | [`TransactionPool`]: what a pool must offer so that `tx` can lend from it |
//! | `durability` | [`Durability`]: the wait that a COMMIT may leave for later |
//! | `transaction` | [`Session`] and [`Transaction`]: an open transaction that owns its connection |
//! | `sqlite` | one writer and N readers per file, and the sync of its log |
//! | `postgres` | the pool for requests and the read-only pool beside it, and how their sessions prove themselves |
//! | `by_url` | [`UrlPool`]: the backend is chosen by the URL, the SQL stands once |
//! | `initializer` | [`init`]: the fairing that attaches a database, in order, with good errors |
//! | `arrival` | where a request came from, noted before another fairing can say otherwise |
//! | `health` | what is logged when a database goes away and comes back |
//! | `readiness` | [`NotReady`]: whether it can serve now, asked beside requests |
//! | `error_class` | what an error of a database means: one table for all |
//! | `config`, `error` | what `Rocket.toml` may say, and what can go wrong at launch |
//!
//! The room knows nothing of requests: what a transaction means for a response is decided in
//! [`tx`](crate::tx).

mod arrival;
mod by_url;
mod config;
mod durability;
mod ending;
mod error;
mod error_class;
#[cfg(feature = "postgres")]
mod health;
mod initializer;
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
mod readiness;
#[cfg(feature = "sqlite")]
mod sqlite;
mod transaction;

pub use by_url::{Connection, UrlPool};
pub use config::{Config, ConfigDuration, Synchronous};
pub use durability::Durability;
pub use ending::{Ended, Ending};
pub use error::{Error, OpenError};
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
    Access, BeginOptions, CommitError, Isolation, RollbackError, Session, Transaction, WaitPolicy,
};

pub(crate) use arrival::Arrival;
#[doc(hidden)] // documented in `extend`, like the next ones
pub use config::setting;
#[doc(hidden)]
pub use error_class::ErrorClass;
pub(crate) use initializer::{AttachedDatabases, same_database};
#[cfg(feature = "postgres")]
#[doc(hidden)]
pub use postgres::{Limits, Liveness, OnReturn, Sessions, Settings};
#[cfg(feature = "sqlite")]
#[doc(hidden)]
pub use sqlite::OneShotWriter;
#[cfg(feature = "sqlite")]
#[doc(hidden)]
pub use sqlite::is_sqlite_busy;
pub(crate) use transaction::{TransactionControl, TransactionId};
