//! What can go wrong before a database serves its first request.

use std::path::PathBuf;
use std::time::Duration;

use rocket::figment;

/// Why a pool could not be made, or could not lend a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `Rocket.toml` or a `ROCKET_*` variable says something that cannot be understood.
    #[error("{0}; correct it in Rocket.toml or in ROCKET_DATABASES")]
    Config(#[from] Box<figment::Error>),

    /// The URL cannot be used as it stands.
    #[error("`url`: {reason}; {advice}")]
    Url {
        /// What is wrong with it.
        reason: String,
        /// What to write instead.
        advice: &'static str,
    },

    /// The database is there but cannot be opened, or is not there and cannot be made.
    #[error("`url`: {0}")]
    Open(#[from] OpenError),

    /// The database opened, but its schema could not be brought up to date.
    #[error(
        "migrations: {source}; {remains}; correct the migration or the database and start again"
    )]
    Migrate {
        /// What went wrong, with the migration's number.
        source: sqlx::migrate::MigrateError,
        /// What is left of this launch's migrations.
        remains: &'static str,
    },

    /// Transactions begin above READ COMMITTED there, and leases are to be kept in it.
    #[error(
        "`default_transaction_isolation` is {0}, above READ COMMITTED, where the fence of a lease cannot work; set it to `read committed` for this role or database, and ask for more by the guard's type"
    )]
    Isolation(String),

    /// No connection was to be had in time, or the pool is closed.
    #[error(
        "no connection: {0}; raise `max_connections` or `connect_timeout`, or look for requests that hold one for long"
    )]
    Acquire(#[from] sqlx::Error),
}

impl From<figment::Error> for Error {
    fn from(error: figment::Error) -> Self {
        Self::Config(Box::new(error))
    }
}

/// Why a database could not be opened. The text names the cause and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder of a SQLite file cannot be made.
    #[error("cannot make the folder {}: {source}; make it, or choose another path", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The path leads to a directory.
    #[error("{} is a directory; name a file in it", .0.display())]
    IsDirectory(PathBuf),

    /// The file exists and is something else.
    #[error("{} is not a SQLite database (or is encrypted); choose another path, or restore the file from a backup", .0.display())]
    NotADatabase(PathBuf),

    /// The file, or the folder that its journal must be written to, is read-only.
    #[error("{} cannot be written; give this process write permission on the file and on its folder", .0.display())]
    ReadOnly(PathBuf),

    /// Another process held the file for longer than we were told to wait.
    #[error("{} stayed locked by another process for {waited:?}; stop that process, or raise `busy_timeout`", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },

    /// SQLite answered the switch to WAL with another mode: the file system cannot carry it.
    #[error("{} refuses write-ahead logging (it stayed in journal mode `{mode}`); put it on a local file system", path.display())]
    NoWal {
        /// The file.
        path: PathBuf,
        /// The mode that it stayed in.
        mode: String,
    },

    /// A pooler gives a client another session with each transaction.
    #[error(
        "a pooler in transaction or statement mode stands before it (two connections were served by one session of the server, or one by two); leases, LISTEN and read-only sessions need a session of their own: use the pooler's session mode (pgbouncer: `pool_mode = session`), or connect to the server itself"
    )]
    SharedSessions,

    /// The URL has `options`, and a pooler drops them.
    #[error(
        "the URL's `options` do not get through the pooler before it; set them for the role or the database instead (`ALTER ROLE … SET …`), or connect to the server itself"
    )]
    OptionsDropped,

    /// Everything else, in the database's own words.
    #[error(
        "cannot open it: {0}; check that the address is right and that the database is running"
    )]
    Database(#[from] sqlx::Error),
}
