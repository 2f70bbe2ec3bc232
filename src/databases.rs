//! The two databases of the service, and their tables.
//!
//! Each is SQLite or Postgres, as its `url` in `Rocket.toml` says. Every file of SQL under
//! `migrations` that was once applied stays as it is: sqlx compares its checksum at each launch.

use rocket_db_pools::Database;
use rocket_tx::db::{Migrations, UrlPool};
use sqlx::migrate;

/// The todos: `databases.main.url`.
#[derive(Database)]
#[database("main")]
pub(crate) struct Main(UrlPool);

/// The audit trail: `databases.audit.url`.
#[derive(Database)]
#[database("audit")]
pub(crate) struct Audit(UrlPool);

impl Main {
    pub(crate) fn migrations() -> Migrations {
        Migrations::new()
            .sqlite(migrate!("migrations/main/sqlite"))
            .postgres(migrate!("migrations/main/postgres"))
    }
}

impl Audit {
    pub(crate) fn migrations() -> Migrations {
        Migrations::new()
            .sqlite(migrate!("migrations/audit/sqlite"))
            .postgres(migrate!("migrations/audit/postgres"))
    }
}
