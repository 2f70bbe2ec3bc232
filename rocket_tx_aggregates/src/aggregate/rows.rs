//! The rows of the tables `aggregate_events` and `aggregate_snapshots`. The statements are in
//! `sql/`, except the INSERT of events, whose text depends on the number of events.

use std::future::Future;

use rocket::serde::json::serde_json;
use rocket_db_pools::Database;
use rocket_tx::db::Session;
use sqlx::FromRow;

use super::error::Error;
use super::event::EventRecord;
use super::stream::{Append, History, Snapshot};
use crate::lock::{LeasePool, statement};

/// A pool whose database can hold aggregates: [`SqlitePool`](rocket_tx::db::SqlitePool),
/// [`PostgresPool`](rocket_tx::db::PostgresPool) or [`UrlPool`](rocket_tx::db::UrlPool).
pub trait AggregatePool:
    LeasePool<Session: Session<Connection: EventRows>, Leases: Send + Sync>
{
}

impl<P> AggregatePool for P where
    P: LeasePool<Session: Session<Connection: EventRows>, Leases: Send + Sync>
{
}

/// A database that can hold aggregates.
pub trait AggregateDatabase: Database<Pool: AggregatePool> {}

impl<D> AggregateDatabase for D where D: Database<Pool: AggregatePool> {}

/// The row of an event or of a snapshot. A snapshot has an empty name. A field is `None` if the
/// column holds a value of another type, which SQLite allows.
#[doc(hidden)]
#[derive(Debug)]
pub struct Row {
    sequence: i64,
    name: Option<String>,
    version: Option<i32>,
    payload: Option<String>,
    metadata: Option<String>,
    recorded_at: i64,
}

impl<'r, R: sqlx::Row> FromRow<'r, R> for Row
where
    &'static str: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    i32: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self {
            sequence: row.try_get("sequence")?,
            name: row.try_get("name").ok(),
            version: row.try_get("version").ok(),
            payload: row.try_get("payload").ok(),
            metadata: row.try_get("metadata").ok(),
            recorded_at: row.try_get("recorded_at").unwrap_or_default(),
        })
    }
}

/// Keeps other crates from implementing [`EventRows`].
pub(super) trait Sealed {}

/// A connection to the tables of events and snapshots.
///
/// Implemented for the connections of `rocket_tx`, and sealed: no other crate can implement it.
// Other crates cannot implement a private bound.
#[allow(private_bounds)]
pub trait EventRows: Sealed + Send {
    /// Reads the snapshot, if there is one of the given version, and the events after it. One
    /// statement reads both, so that they match.
    #[doc(hidden)]
    fn history(
        &mut self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> impl Future<Output = sqlx::Result<Vec<Row>>> + Send;

    /// Reads at most `limit` events, in order, starting after the sequence `after`.
    #[doc(hidden)]
    fn page(
        &mut self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> impl Future<Output = sqlx::Result<Vec<Row>>> + Send;

    /// Inserts events, at most 1,000 with one statement.
    #[doc(hidden)]
    fn insert_events(&mut self, append: &Append) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Stores or replaces the snapshot of a stream.
    #[doc(hidden)]
    fn put_snapshot(
        &mut self,
        stream: &str,
        snapshot: &Snapshot,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
}

fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// Maps a negative sequence to 0, which no event has: sequences start at 1.
fn unsigned(sequence: i64) -> u64 {
    u64::try_from(sequence).unwrap_or(0)
}

impl Row {
    pub(super) fn event(self, stream: &str) -> Result<EventRecord, Error> {
        let sequence = unsigned(self.sequence);
        // The messages of serde and of the driver may quote the content, so they are left out.
        let corrupt = |what: &str| Error::Corrupt {
            stream: stream.to_owned(),
            sequence,
            reason: format!("its stored {what} is not valid"),
        };
        let version = self.version.and_then(|it| u32::try_from(it).ok());
        let payload = self.payload.and_then(|it| serde_json::from_str(&it).ok());
        let metadata = self.metadata.and_then(|it| serde_json::from_str(&it).ok());
        Ok(EventRecord {
            sequence,
            name: self.name.ok_or_else(|| corrupt("name"))?,
            version: version.ok_or_else(|| corrupt("version"))?,
            payload: payload.ok_or_else(|| corrupt("payload"))?,
            recorded_at: Some(self.recorded_at),
            metadata: metadata.ok_or_else(|| corrupt("metadata"))?,
        })
    }
}

/// Builds a history from the rows of [`EventRows::history`].
pub(super) fn history_of(stream: &str, rows: Vec<Row>) -> Result<History, Error> {
    let mut history = History::default();
    for row in rows {
        if row.name.as_deref() == Some("") {
            // A snapshot that cannot be read is no error here. Restoring its state will fail, and
            // the aggregate is then rebuilt from all its events.
            history.snapshot = Some(Snapshot {
                sequence: unsigned(row.sequence),
                version: row
                    .version
                    .and_then(|it| u32::try_from(it).ok())
                    .unwrap_or_default(),
                state: row.payload.unwrap_or_default(),
            });
        } else {
            history.events.push(row.event(stream)?);
        }
    }
    Ok(history)
}

macro_rules! rows {
    ($database:ty, $connection:ty, now = $now:literal, $put_snapshot:literal) => {
        impl Sealed for $connection {}

        impl EventRows for $connection {
            async fn history(
                &mut self,
                stream: &str,
                snapshot_version: Option<u32>,
            ) -> sqlx::Result<Vec<Row>> {
                sqlx::query_as::<$database, Row>(statement(include_str!("sql/history.sql")))
                .bind(stream)
                .bind(snapshot_version.and_then(|version| i32::try_from(version).ok()))
                .fetch_all(self)
                .await
            }

            async fn page(
                &mut self,
                stream: &str,
                after: u64,
                limit: u32,
            ) -> sqlx::Result<Vec<Row>> {
                sqlx::query_as::<$database, Row>(statement(include_str!("sql/page.sql")))
                .bind(stream)
                .bind(signed(after))
                .bind(i64::from(limit))
                .fetch_all(self)
                .await
            }

            async fn insert_events(&mut self, append: &Append) -> sqlx::Result<()> {
                /// Events per statement. Both backends limit the parameters of a statement.
                const AT_ONCE: usize = 1_000;

                for events in append.events.chunks(AT_ONCE) {
                    let mut insert = sqlx::QueryBuilder::<$database>::new(
                        "INSERT INTO aggregate_events \
                         (stream, sequence, name, version, payload, metadata, recorded_at) ",
                    );
                    insert.push_values(events, |mut row, event| {
                        row.push_bind(append.stream.clone())
                            .push_bind(signed(event.sequence))
                            .push_bind(event.name.clone())
                            .push_bind(i32::try_from(event.version).unwrap_or(i32::MAX))
                            .push_bind(event.payload.to_string())
                            .push_bind(serde_json::json!(event.metadata).to_string())
                            .push($now);
                    });
                    insert.build().execute(&mut *self).await?;
                }
                Ok(())
            }

            async fn put_snapshot(
                &mut self,
                stream: &str,
                snapshot: &Snapshot,
            ) -> sqlx::Result<()> {
                sqlx::query::<$database>(statement(include_str!($put_snapshot)))
                .bind(stream)
                .bind(signed(snapshot.sequence))
                .bind(i32::try_from(snapshot.version).unwrap_or(i32::MAX))
                .bind(&snapshot.state)
                .execute(self)
                .await?;
                Ok(())
            }
        }
    };
}

#[cfg(feature = "sqlite")]
rows!(
    sqlx::Sqlite,
    sqlx::SqliteConnection,
    now = "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)",
    "sql/sqlite/put_snapshot.sql"
);

#[cfg(feature = "postgres")]
rows!(
    sqlx::Postgres,
    sqlx::PgConnection,
    now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
    "sql/postgres/put_snapshot.sql"
);
