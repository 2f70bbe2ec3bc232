//! How a database is opened, lent and closed.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `pool` | [`TransactionPool`]: what a pool must offer so that `tx` can lend from it |
//! | `durability` | [`Durability`]: the wait that a COMMIT may leave for later |
//! | `transaction` | [`Session`] and [`Transaction`]: an open transaction that owns its connection |
//! | `sqlite` | one writer and N readers per file |
//! | `sqlite_writer` | the connection that writes, and the queue in front of it |
//! | `sqlite_steps` | the statements that begin and end its transactions |
//! | `sqlite_lent` | that connection while one transaction has it |
//! | `sqlite_readers` | the connections that only read |
//! | `sqlite_place` | whether the file is still the one that was opened |
//! | `sqlite_mark` | whether a transaction has written to the write-ahead log |
//! | `sqlite_sync` | one sync of the write-ahead log for all commits before it |
//! | `sqlite_watch` | what only SQLite can say about the writer's transaction |
//! | `sqlite_file` | the one helper that every SQLite file is opened by |
//! | `postgres` | the pool for requests and the read-only pool beside it, and how their sessions prove themselves |
//! | `by_url` | [`UrlPool`]: the backend is chosen by the URL, the SQL stands once |
//! | `initializer` | [`init`]: the fairing that attaches a database, in order, with good errors |
//! | `health` | what is logged when a database goes away and comes back |
//! | `readiness`, `sqlite_readiness` | [`NotReady`]: whether it can serve now, asked beside requests |
//! | `error_class` | what an error of a database means: one table for all |
//! | `config`, `error` | what `Rocket.toml` may say, and what can go wrong at launch |
//!
//! The room knows nothing of requests: what a transaction means for a response is decided in
//! [`tx`](crate::tx).

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
#[cfg(feature = "sqlite")]
mod sqlite_file;
#[cfg(feature = "sqlite")]
mod sqlite_lent;
#[cfg(feature = "sqlite")]
mod sqlite_mark;
#[cfg(feature = "sqlite")]
mod sqlite_place;
#[cfg(feature = "sqlite")]
mod sqlite_readers;
#[cfg(feature = "sqlite")]
mod sqlite_readiness;
#[cfg(feature = "sqlite")]
mod sqlite_steps;
#[cfg(feature = "sqlite")]
mod sqlite_sync;
#[cfg(feature = "sqlite")]
mod sqlite_watch;
#[cfg(feature = "sqlite")]
mod sqlite_writer;
mod transaction;

pub use by_url::{Connection, UrlPool};
pub use config::{Config, Seconds, Synchronous};
pub use durability::Durability;
pub use ending::{Ended, Ending};
pub use error::{Error, OpenError};
pub use initializer::{Initializer, init};
pub use pool::{Identity, Link, Migrations, TransactionPool};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresPool, PostgresSession};
pub use readiness::NotReady;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqlitePool, SqliteSession};
#[cfg(feature = "sqlite")]
pub use sqlite_file::sqlite_open_retries;
pub use transaction::{
    Access, BeginOptions, CommitError, Isolation, Patience, RollbackError, Session, Transaction,
    TransactionId,
};

pub(crate) use by_url::either;
pub(crate) use config::setting;
pub(crate) use error_class::ErrorClass;
pub(crate) use initializer::{Roster, same_database};
#[cfg(feature = "postgres")]
pub(crate) use postgres::{Limits, Liveness, OnReturn, Sessions, Settings};
#[cfg(feature = "sqlite")]
pub(crate) use sqlite_file::is_sqlite_busy;
#[cfg(feature = "sqlite")]
pub(crate) use sqlite_lent::WholeWriter;
