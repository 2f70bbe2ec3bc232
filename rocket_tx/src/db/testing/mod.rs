//! Databases that belong to one test, for [`testing`](crate::testing).
//!
//! Each attached database has a *template* with the tables that launches create, and each test gets
//! a copy of it. Every migration of a launch runs in the template first. So the copies of later
//! tests have its tables, and the migration only finds out that there is nothing to do.
//!
//! | file | contents |
//! | --- | --- |
//! | `own` | [`OwnDatabases`]: the databases of one test |
//! | `template` | [`Template`]: what is copied, and its name |
//! | `files` | templates and copies on SQLite: files in the folder for temporary files |
//! | `server` | templates and copies on Postgres |
//! | `drops` | drops databases and templates on Postgres, also those of test processes that were killed |
//! | `url` | replaces the database in a URL |
//! | `workshop` | the runtime in which all of this happens |

#[cfg(feature = "postgres")]
mod drops;
#[cfg(feature = "sqlite")]
mod files;
mod own;
#[cfg(feature = "postgres")]
mod server;
mod template;
mod url;
mod workshop;

pub(crate) use own::OwnDatabases;
pub(crate) use template::Template;

/// Why a test got no database of its own. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestDatabaseError {
    #[cfg(feature = "postgres")]
    #[error("`url`: {0}; correct it in Rocket.toml or in ROCKET_DATABASES")]
    Url(String),

    #[error(
        "`url` is also `databases.{0}.url`, and a request that writes to both would wait for itself; give each of them a separate database"
    )]
    SameUrl(&'static str),

    #[cfg(feature = "postgres")]
    #[error(
        "tests need the server of the configured URL, but cannot connect to {server}: {source}; start the server, run fewer tests at once, or configure another server for the tests, for example with ROCKET_DATABASES"
    )]
    Unreachable { server: String, source: sqlx::Error },

    #[cfg(feature = "postgres")]
    #[error(
        "tests create a database for each test, but the role `{role}` at {server} may not create databases; run `ALTER ROLE \"{role}\" CREATEDB` as a superuser, or configure another role for the tests"
    )]
    NotAllowed { role: String, server: String },

    #[error("the databases of the test could not be prepared: {0}")]
    Statement(#[from] sqlx::Error),

    #[cfg(feature = "sqlite")]
    #[error("cannot write test databases in {}: {source}; set TMPDIR to a folder that this user can write", folder.display())]
    Folder {
        folder: std::path::PathBuf,
        source: std::io::Error,
    },

    #[error("{0}")]
    Template(#[from] super::PoolError),
}
