//! The errors of opening a database at launch.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rocket::figment;
use sqlx::migrate::MigrateError;

use super::error_class::sqlstate_on_opening;

/// Why a pool could not be opened, or could not provide a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A setting in `Rocket.toml` or a `ROCKET_*` variable is missing or invalid.
    #[error("{}; correct it in Rocket.toml or in ROCKET_DATABASES", Setting(.0))]
    Config(#[from] Box<figment::Error>),

    /// The configuration has no table for the database.
    #[error(
        "there is no such table in the configuration{found}; add `[default.databases.{name}]` with the line `url = \"sqlite:data/{name}.db\"` or `url = \"postgres://user@host/database\"` to Rocket.toml, or the table to ROCKET_DATABASES"
    )]
    NotConfigured {
        /// The name of the database.
        name: &'static str,
        /// The file that was read, and the tables that it has instead.
        found: String,
    },

    /// The URL is invalid or not supported.
    #[error("`url`: {reason}; {advice}")]
    Url {
        /// The problem with the URL.
        reason: String,
        /// The correction.
        advice: &'static str,
    },

    /// The database could not be opened or created.
    #[error("`url`: {0}")]
    Open(#[from] OpenError),

    /// The database was opened, but a migration failed.
    #[error(
        "the migrations failed: {source}; {remains}; {advice}", advice = advice_on_migrating(source)
    )]
    Migrate {
        /// The error, with the number of the migration.
        source: MigrateError,
        /// Which migrations of this launch remain applied.
        remains: &'static str,
    },

    /// The database stores leases, but its default isolation is above READ COMMITTED. There the
    /// fence of a lease (the check at commit that the lease is still held) does not work.
    #[error(
        "`default_transaction_isolation` is `{0}`, but the fence of a lease does not work above `read committed`; set it to `read committed` for this role or database, and request stricter isolation by the type of the guard"
    )]
    Isolation(String),

    /// No connection could be acquired: none was free in time, a new one could not be opened, or
    /// the pool is closed.
    #[error(
        "no connection is available: {0}; raise `max_connections` or `connect_timeout`, or find the requests that hold a connection for long"
    )]
    Acquire(#[from] sqlx::Error),
}

/// Displays the error of a setting. figment shows the known keys in doubled quotes.
struct Setting<'a>(&'a figment::Error);

impl fmt::Display for Setting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.kind {
            figment::error::Kind::UnknownField(key, known) => {
                write!(
                    f,
                    "there is no key `{key}`; the keys are `{}`",
                    known.join("`, `")
                )
            }
            _ => self.0.fmt(f),
        }
    }
}

impl From<figment::Error> for PoolError {
    fn from(error: figment::Error) -> Self {
        Self::Config(Box::new(error))
    }
}

/// Why a database could not be opened. The message names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder of a SQLite file cannot be created.
    #[error("cannot create the folder {}: {source}; create it, or choose another path", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The path leads to a directory.
    #[error("{} is a directory; name a file in it", .0.display())]
    IsDirectory(PathBuf),

    /// The file exists, but is not a SQLite database.
    #[error("{} is not a SQLite database (or is encrypted); choose another path, or restore the file from a backup", .0.display())]
    NotADatabase(PathBuf),

    /// The file or its folder is read-only. SQLite must write its journal in the folder.
    #[error("{} cannot be written; give this process write permission on the file and on its folder", .0.display())]
    ReadOnly(PathBuf),

    /// Another process held a lock on the file for longer than `busy_timeout`.
    #[error("{} was locked by another process for {waited:?}; stop that process, or raise `busy_timeout`", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// How long the launch waited.
        waited: Duration,
    },

    /// SQLite did not switch the file to write-ahead logging: the file system does not support it.
    #[error("{} cannot use write-ahead logging (its journal mode is still `{mode}`); move it to a local file system", path.display())]
    NoWal {
        /// The file.
        path: PathBuf,
        /// The journal mode of the file.
        mode: String,
    },

    /// A connection pooler does not give each connection its own server session.
    #[error(
        "a connection pooler in transaction or statement mode is in front of the server (two connections used one server session, or one connection used two); leases, LISTEN and read-only sessions need one server session for each connection; use the pooler's session mode (pgbouncer: `pool_mode = session`), or connect to the server directly"
    )]
    SharedSessions,

    /// The URL has `options`, and a connection pooler drops them.
    #[error(
        "a connection pooler drops the `options` of the URL; set them for the role or the database instead (`ALTER ROLE … SET …`), or connect to the server directly"
    )]
    OptionsDropped,

    /// Any other error of the database.
    #[error(
        "cannot open the database: {0}; {advice}", advice = advice_on_opening(.0)
    )]
    Database(#[from] sqlx::Error),
}

const INVALID_CATALOG_NAME: &str = "3D000";
const INVALID_AUTHORIZATION: &str = "28000";
const INVALID_PASSWORD: &str = "28P01";
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Returns whether the server refuses the role, the password or the database of the URL.
#[cfg(feature = "postgres")]
pub(super) fn is_refused_login(error: &sqlx::Error) -> bool {
    const REFUSALS: [&str; 4] = [
        INVALID_CATALOG_NAME,
        INVALID_AUTHORIZATION,
        INVALID_PASSWORD,
        INSUFFICIENT_PRIVILEGE,
    ];
    sqlstate_on_opening(error).is_some_and(|state| REFUSALS.contains(&&*state))
}

/// Returns what to do if a database could not be opened at launch.
fn advice_on_opening(error: &sqlx::Error) -> &'static str {
    match sqlstate_on_opening(error).as_deref() {
        Some(INVALID_CATALOG_NAME) => {
            "create this database (`CREATE DATABASE`), or correct its name at the end of the URL"
        }
        Some(INVALID_AUTHORIZATION | INVALID_PASSWORD) => {
            "correct the user and the password in the URL, create the role \
             (`CREATE ROLE … LOGIN PASSWORD …`), or allow it in the server's pg_hba.conf"
        }
        Some(INSUFFICIENT_PRIVILEGE) => {
            "let the role of the URL use this database (`GRANT CONNECT ON DATABASE … TO …`)"
        }
        _ => {
            "check that the address is right (special characters of the user and the password are \
             percent-encoded, `@` as `%40`) and that the database is running"
        }
    }
}

/// Returns what to do if migrations failed at launch.
fn advice_on_migrating(error: &MigrateError) -> &'static str {
    let state = match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            sqlstate_on_opening(error)
        }
        _ => None,
    };
    match state.as_deref() {
        Some(INSUFFICIENT_PRIVILEGE) => {
            "give the role of the URL this right and start again; to create tables, it needs \
             `GRANT CREATE ON SCHEMA public TO …`"
        }
        _ => "correct the migration or the database and start again",
    }
}
