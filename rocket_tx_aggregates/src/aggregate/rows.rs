//! The rows of the tables `aggregate_events` and `aggregate_snapshots`. The statements are in `sql/`.
//! Each of them takes any number of streams or events, so that a commit of many aggregates costs no
//! more round trips than that of one.

use std::collections::HashMap;
use std::future::Future;

use rocket::serde::json::serde_json::{self, Value, json};
use rocket_db_pools::Database;
use rocket_tx::db::Session;
use sqlx::FromRow;

use super::error::AggregateError;
use super::event::EventRecord;
use super::stream::{Append, History, Snapshot};
use crate::lock::{Fence, LeasePool, ReleaseOutcome, statement};
#[cfg(sqlite)]
use crate::lock::{keys_and_tokens, outcomes_of};

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

/// A row of one of several streams.
#[doc(hidden)]
#[derive(Debug)]
pub struct StreamRow {
    pub(super) stream: String,
    pub(super) row: Row,
}

impl<'r, R: sqlx::Row> FromRow<'r, R> for StreamRow
where
    &'static str: sqlx::ColumnIndex<R>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Row: FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self {
            stream: row.try_get("stream")?,
            row: Row::from_row(row)?,
        })
    }
}

/// The result of [`EventRows::insert_events`].
#[doc(hidden)]
#[derive(Debug)]
pub struct Inserted {
    /// The stream of each event that was inserted.
    pub(super) streams: Vec<String>,
    /// The outcomes of the leases, in their order. `None` if they were not released.
    pub(super) released: Option<Vec<ReleaseOutcome>>,
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

    /// Reads several streams, each as [`history`](Self::history) does.
    #[doc(hidden)]
    fn histories(
        &mut self,
        streams: &[&str],
        snapshot_version: Option<u32>,
    ) -> impl Future<Output = sqlx::Result<Vec<StreamRow>>> + Send;

    /// Inserts the events of all appends, with one statement. An event is left out if its key is
    /// taken.
    ///
    /// On SQLite, also deletes the rows of the leases `fences`, in the same message: nobody sees that
    /// before COMMIT. On Postgres another process that takes such a lease could wait for its deleted
    /// row, so the rows are deleted later.
    #[doc(hidden)]
    fn insert_events(
        &mut self,
        batch: &[Append],
        fences: &[&Fence],
    ) -> impl Future<Output = sqlx::Result<Inserted>> + Send;

    /// Stores or replaces the snapshots of the streams that have one in `batch`.
    #[doc(hidden)]
    fn put_snapshots(&mut self, batch: &[Append]) -> impl Future<Output = sqlx::Result<()>> + Send;
}

fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// Maps a negative sequence to 0, which no event has: sequences start at 1.
fn unsigned(sequence: i64) -> u64 {
    u64::try_from(sequence).unwrap_or(0)
}

impl Row {
    pub(super) fn event(self, stream: &str) -> Result<EventRecord, AggregateError> {
        let sequence = unsigned(self.sequence);
        // The messages of serde and of the driver may quote the content, so they are left out.
        let corrupt = |what: &str| AggregateError::Corrupt {
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

/// Builds the histories of `streams` from the rows of [`EventRows::histories`].
pub(super) fn histories_of(
    streams: &[&str],
    rows: Vec<StreamRow>,
) -> Result<Vec<History>, AggregateError> {
    let mut by_stream: HashMap<String, Vec<Row>> = HashMap::new();
    for StreamRow { stream, row } in rows {
        by_stream.entry(stream).or_default().push(row);
    }
    let history = |stream: &&str| {
        let rows = by_stream.remove(*stream).unwrap_or_default();
        history_of(stream, rows)
    };
    streams.iter().map(history).collect()
}

/// Builds a history from the rows of [`EventRows::history`].
pub(super) fn history_of(stream: &str, rows: Vec<Row>) -> Result<History, AggregateError> {
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

/// Returns the events of all appends, as the statements that insert them receive them.
fn events_of(batch: &[Append]) -> Value {
    let events = batch.iter().flat_map(|append| {
        append.events.iter().map(|event| {
            json!([
                append.stream,
                signed(event.sequence),
                event.name,
                i32::try_from(event.version).unwrap_or(i32::MAX),
                event.payload.to_string(),
                json!(event.metadata).to_string(),
            ])
        })
    });
    Value::from_iter(events)
}

/// Returns the snapshots of all appends, as the parameter of the statement that stores them.
fn snapshots_of(batch: &[Append]) -> String {
    let snapshots = batch.iter().filter_map(|append| {
        let snapshot = append.snapshot.as_ref()?;
        Some(json!([
            append.stream,
            signed(snapshot.sequence),
            i32::try_from(snapshot.version).unwrap_or(i32::MAX),
            snapshot.state,
        ]))
    });
    Value::from_iter(snapshots).to_string()
}

macro_rules! rows {
    ($database:ty, $connection:ty, $folder:literal, $insert_events:path) => {
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

            async fn histories(
                &mut self,
                streams: &[&str],
                snapshot_version: Option<u32>,
            ) -> sqlx::Result<Vec<StreamRow>> {
                const SQL: &str = include_str!(concat!("sql/", $folder, "/histories.sql"));

                sqlx::query_as::<$database, StreamRow>(statement(SQL))
                    .bind(json!(streams).to_string())
                    .bind(snapshot_version.and_then(|version| i32::try_from(version).ok()))
                    .fetch_all(self)
                    .await
            }

            async fn insert_events(
                &mut self,
                batch: &[Append],
                fences: &[&Fence],
            ) -> sqlx::Result<Inserted> {
                $insert_events(self, batch, fences).await
            }

            async fn put_snapshots(&mut self, batch: &[Append]) -> sqlx::Result<()> {
                const SQL: &str = include_str!(concat!("sql/", $folder, "/put_snapshots.sql"));

                sqlx::query::<$database>(statement(SQL))
                    .bind(snapshots_of(batch))
                    .execute(self)
                    .await?;
                Ok(())
            }
        }
    };
}

#[cfg(sqlite)]
rows!(
    sqlx::Sqlite,
    sqlx::SqliteConnection,
    "sqlite",
    insert_and_release
);

#[cfg(sqlite)]
async fn insert_and_release(
    db: &mut sqlx::SqliteConnection,
    batch: &[Append],
    fences: &[&Fence],
) -> sqlx::Result<Inserted> {
    const INSERT: &str = include_str!("sql/sqlite/insert_events.sql");
    const BOTH: &str = concat!(
        include_str!("sql/sqlite/insert_events.sql"),
        ";\n",
        include_str!("../lock/sql/sqlite/release_all.sql")
    );

    let sql = if fences.is_empty() { INSERT } else { BOTH };
    let leases = keys_and_tokens(fences);
    let parameter = json!({"events": events_of(batch), "leases": leases}).to_string();
    // The row of an event has its stream and NULL, the row of a lease its key and `wanted`.
    let rows: Vec<(String, Option<bool>)> = sqlx::query_as(statement(sql))
        .bind(parameter)
        .fetch_all(db)
        .await?;
    let (mut streams, mut deleted) = (Vec::new(), Vec::new());
    for (stream_or_key, wanted) in rows {
        match wanted {
            None => streams.push(stream_or_key),
            Some(wanted) => deleted.push((stream_or_key, wanted)),
        }
    }
    Ok(Inserted {
        streams,
        released: Some(outcomes_of(fences, deleted)),
    })
}

#[cfg(postgres)]
rows!(sqlx::Postgres, sqlx::PgConnection, "postgres", insert);

#[cfg(postgres)]
async fn insert(
    db: &mut sqlx::PgConnection,
    batch: &[Append],
    _fences: &[&Fence],
) -> sqlx::Result<Inserted> {
    const SQL: &str = include_str!("sql/postgres/insert_events.sql");

    let insert = sqlx::query_scalar(statement(SQL)).bind(events_of(batch).to_string());
    Ok(Inserted {
        streams: insert.fetch_all(db).await?,
        released: None,
    })
}
