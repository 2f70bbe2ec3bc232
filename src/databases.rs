//! The two databases of the service, and their tables.
//!
//! The `url` of each database in `Rocket.toml` selects SQLite or Postgres. Do not change a SQL file
//! under `migrations` once it has been applied: sqlx compares its checksum at each launch.

use rocket_db_pools::Database;
use rocket_tx::db::{Migrations, UrlPool};
use sqlx::migrate;

/// The database of the todos, at `databases.main.url`.
#[derive(Database)]
#[database("main")]
pub(crate) struct Main(UrlPool);

/// The database of the audit trail, at `databases.audit.url`.
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
