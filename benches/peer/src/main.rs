//! Serves the commands of the benchmark `leases` with the locks of sourced_rust:
//!
//! ```text
//! cargo build --release --manifest-path benches/peer/Cargo.toml
//! tests/run --postgres cargo bench --bench leases -- --peer benches/peer/target/release/leases_peer
//! ```
//!
//! The locks have the durability that the leases of this library have: a power cut may lose them.
//! `CONNECTIONS` is the size of the pool; the default is the best one that was found.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "../../leases/serve.rs"]
mod serve;

use std::sync::Arc;

use serve::Locks;
use sourced_rust::{
    AsyncLock, AsyncLockManager, PostgresLock, PostgresLockManager, SqliteLock, SqliteLockManager,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

fn main() {
    let url = std::env::args().nth(1).expect("give the URL of a database");
    serve::serve(Peer { url, manager: None });
}

struct Peer {
    url: String,
    manager: Option<Manager>,
}

enum Manager {
    Sqlite(SqliteLockManager),
    Postgres(PostgresLockManager),
}

enum Held {
    Sqlite(Arc<SqliteLock>),
    Postgres(Arc<PostgresLock>),
}

impl Locks for Peer {
    type Held = Held;

    async fn connect(&mut self) {
        self.manager = Some(match self.url.strip_prefix("sqlite:") {
            Some(file) => sqlite(file).await,
            None => postgres(&self.url).await,
        });
    }

    async fn acquire(&self, _: usize, key: &str) -> Held {
        match self.manager.as_ref().unwrap() {
            Manager::Sqlite(manager) => {
                let lock = manager.get_lock(key).unwrap();
                lock.lock().await.unwrap();
                Held::Sqlite(lock)
            }
            Manager::Postgres(manager) => {
                let lock = manager.get_lock(key).unwrap();
                lock.lock().await.unwrap();
                Held::Postgres(lock)
            }
        }
    }

    async fn release(&self, _: usize, held: Held) {
        match held {
            Held::Sqlite(lock) => lock.unlock().await.unwrap(),
            Held::Postgres(lock) => lock.unlock().await.unwrap(),
        }
    }
}

fn connections(default: u32) -> u32 {
    match std::env::var("CONNECTIONS") {
        Ok(number) => number.parse().expect("CONNECTIONS is a number"),
        Err(_) => default,
    }
}

/// Uses a file of its own beside the given one: both libraries name their table `aggregate_locks`.
async fn sqlite(file: &str) -> Manager {
    let options = SqliteConnectOptions::new()
        .filename(format!("{file}.peer"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let pool = SqlitePoolOptions::new().max_connections(connections(1));
    let pool = pool.connect_with(options).await.unwrap();
    SqliteLockManager::migrate(&pool).await.unwrap();
    Manager::Sqlite(SqliteLockManager::new(pool))
}

/// Uses a schema of its own, for the same reason.
async fn postgres(url: &str) -> Manager {
    let options: PgConnectOptions = url.parse().unwrap();
    let options = options.options([("synchronous_commit", "off"), ("search_path", "peer")]);
    let pool = PgPoolOptions::new().max_connections(connections(4));
    let pool = pool.connect_with(options).await.unwrap();
    // Two processes start at the same time, and PostgreSQL may refuse one of two statements that
    // create the same schema or table.
    let mut only_one = pool.begin().await.unwrap();
    for statement in ["SELECT pg_advisory_xact_lock(1)", "CREATE SCHEMA IF NOT EXISTS peer"] {
        sqlx::query(statement).execute(&mut *only_one).await.unwrap();
    }
    only_one.commit().await.unwrap();
    let mut only_one = pool.begin().await.unwrap();
    let lock = sqlx::query("SELECT pg_advisory_xact_lock(1)");
    lock.execute(&mut *only_one).await.unwrap();
    PostgresLockManager::migrate(&pool).await.unwrap();
    only_one.commit().await.unwrap();
    Manager::Postgres(PostgresLockManager::new(pool))
}
