//! The raw pair of statements: an upsert that takes a row, and a delete by its token.

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, PgConnection, SqliteConnection};
use tokio::sync::Mutex;

use crate::serve::Locks;

/// The most connections of a case.
const MOST: usize = 16;

/// A connection for each task.
pub struct Raw {
    url: String,
    connections: Vec<Mutex<Connection>>,
}

enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Raw {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            connections: Vec::new(),
        }
    }
}

macro_rules! take {
    ($connection:expr, $key:expr, $now:literal) => {{
        sqlx::query(concat!(
            "INSERT INTO aggregate_locks AS held \
                 (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted) \
             VALUES ($1, 'raw', $2, 1, ",
            $now,
            ", ",
            $now,
            " + 30000, FALSE) ON CONFLICT (lock_key) DO UPDATE SET token = excluded.token \
             WHERE held.expires_at <= ",
            $now
        ))
        .bind($key)
        .bind("token")
        .execute(&mut *$connection)
        .await
        .unwrap();
    }};
}

macro_rules! delete {
    ($connection:expr, $key:expr) => {{
        let gone = sqlx::query("DELETE FROM aggregate_locks WHERE lock_key = $1 AND token = $2")
            .bind($key)
            .bind("token")
            .execute(&mut *$connection)
            .await
            .unwrap();
        assert_eq!(gone.rows_affected(), 1);
    }};
}

impl Locks for Raw {
    type Held = String;

    /// Connects with the settings that the library uses for leases.
    async fn connect(&mut self) {
        for _ in 0..MOST {
            let connection = match self.url.starts_with("sqlite:") {
                true => {
                    let options: SqliteConnectOptions = self.url.parse().unwrap();
                    let options = options.synchronous(SqliteSynchronous::Normal);
                    Connection::Sqlite(options.connect().await.unwrap())
                }
                false => {
                    let options: PgConnectOptions = self.url.parse().unwrap();
                    let options = options.options([("synchronous_commit", "off")]);
                    Connection::Postgres(options.connect().await.unwrap())
                }
            };
            self.connections.push(Mutex::new(connection));
        }
    }

    async fn acquire(&self, task: usize, key: &str) -> String {
        match &mut *self.connections[task].lock().await {
            Connection::Sqlite(db) => {
                take!(
                    db,
                    key,
                    "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)"
                );
            }
            Connection::Postgres(db) => {
                take!(
                    db,
                    key,
                    "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
                );
            }
        }
        key.to_owned()
    }

    async fn release(&self, task: usize, key: String) {
        match &mut *self.connections[task].lock().await {
            Connection::Sqlite(db) => delete!(db, &key),
            Connection::Postgres(db) => delete!(db, &key),
        }
    }
}
