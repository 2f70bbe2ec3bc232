//! [`SqlEventStore`]: events, snapshots and read models, written in one transaction.

use std::future::Future;

use rocket_tx::db::{self, Access, BeginOptions, Migrations, Session, TransactionPool, WaitPolicy};
use sqlx::migrate;

use super::definition::Aggregate;
use super::error::AggregateError;
use super::event::EventRecord;
use super::projection::{Projection, Projections};
use super::repository::AsyncRepository;
use super::rows::{AggregatePool, EventRows, Row, histories_of, history_of};
use super::stream::{Append, History};
use crate::lock::{Fence, LeaseStore, LockError, ReleaseOutcome};

/// An event store that can delete lease rows in the transaction that stores the events.
pub trait EventStore: AsyncRepository {
    /// Appends events to streams, to all of them or to none. The same transaction deletes the lease
    /// rows of those `fences` that are in this store's database.
    ///
    /// Returns one element for each fence: the outcome of its release, or `None` if this call did
    /// not try to delete its row. It does not try for a row in another database, and not if there
    /// are no events to append.
    ///
    /// # Errors
    ///
    /// As [`append`](AsyncRepository::append); [`LockError::Lost`] if a lease row is missing.
    fn append_fenced(
        &self,
        batch: Vec<Append>,
        fences: &[Fence],
    ) -> impl Future<Output = Result<Vec<Option<ReleaseOutcome>>, AggregateError>> + Send;
}

/// The connection type to which the guards of the pool `P` dereference.
pub(super) type ConnectionOf<P> = <<P as TransactionPool>::Session as Session>::Connection;

/// An event store in a SQLite file or in Postgres. A clone is another handle on the same store.
///
/// Use it for work outside of requests. In a handler, use the guard
/// [`Aggregates`](super::Aggregates).
#[derive(Clone)]
pub struct SqlEventStore<P: AggregatePool> {
    pool: P,
    snapshot_every: u64,
    projections: Projections<ConnectionOf<P>>,
}

impl<P: AggregatePool> SqlEventStore<P> {
    /// Creates a store in the database of `pool`, with a snapshot every 100 events.
    pub fn new(pool: &P) -> Self {
        Self {
            pool: pool.clone(),
            snapshot_every: 100,
            projections: Projections::default(),
        }
    }

    /// Sets the number of events between snapshots; 0 means no snapshots.
    pub fn with_snapshot_every(mut self, events: u64) -> Self {
        self.snapshot_every = events;
        self
    }

    /// Adds a projection, which writes a read model in the transactions that store events of `A`.
    pub fn with_projection<A: Aggregate>(
        mut self,
        projection: impl Projection<A, ConnectionOf<P>>,
    ) -> Self {
        self.projections = self.projections.with::<A, _>(projection);
        self
    }

    pub(super) fn with_projections(mut self, projections: Projections<ConnectionOf<P>>) -> Self {
        self.projections = projections;
        self
    }

    /// Creates the tables, or brings them up to date.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    pub async fn migrate(&self) -> Result<(), db::PoolError> {
        const TABLE: &str = "_aggregate_events_migrations";

        let migrations = Migrations::new();
        #[cfg(sqlite)]
        let migrations = {
            let mut migrator = migrate!("migrations/aggregates/sqlite");
            migrator.dangerous_set_table_name(TABLE);
            migrations.sqlite(migrator)
        };
        #[cfg(postgres)]
        let migrations = {
            let mut migrator = migrate!("migrations/aggregates/postgres");
            migrator.dangerous_set_table_name(TABLE);
            migrations.postgres(migrator)
        };
        self.pool.migrate(&migrations).await
    }

    pub(super) fn pool(&self) -> &P {
        &self.pool
    }

    /// Writes to the caller's transaction: first the events in stream order, then the snapshots,
    /// then the read models. Deletes the rows of leases: on Postgres after that, on SQLite with the
    /// events. The number of statements does not depend on the number of appends, except those of
    /// projections that write one aggregate at a time.
    ///
    /// Returns the outcomes of the leases, in the order of `fences`.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Conflict`] if the key of an event is taken. [`LockError::Lost`] if the row of
    /// a lease is missing or has another token.
    pub(super) async fn write(
        &self,
        db: &mut ConnectionOf<P>,
        batch: Vec<Append>,
        fences: &[&Fence],
    ) -> Result<Vec<ReleaseOutcome>, AggregateError> {
        let batch = in_stream_order(batch)?;
        let mut released = None;
        if !batch.is_empty() {
            let inserted = db.insert_events(&batch, fences).await?;
            let has_conflict = |append: &&Append| {
                let streams = inserted.streams.iter();
                streams.filter(|stream| **stream == append.stream).count() < append.events.len()
            };
            if let Some(append) = batch.iter().find(has_conflict) {
                return Err(AggregateError::Conflict(append.stream.clone()));
            }
            if batch.iter().any(|append| append.snapshot.is_some()) {
                db.put_snapshots(&batch).await?;
            }
            self.projections.project(db, &batch).await?;
            released = inserted.released;
        }
        let released = match released {
            Some(released) => released,
            None => <P::Leases as LeaseStore>::release_within(db, fences).await?,
        };
        match fences.iter().zip(&released).find(|(_, it)| !it.ours) {
            None => Ok(released),
            Some((fence, _)) => Err(LockError::Lost(fence.key.to_string()).into()),
        }
    }
}

/// Sorts appends by stream, so that transactions that write the same streams wait for each other in
/// the same order. Joins the appends of one stream.
///
/// # Errors
///
/// [`AggregateError::Conflict`] if appends of one stream do not follow each other.
fn in_stream_order(mut batch: Vec<Append>) -> Result<Vec<Append>, AggregateError> {
    batch.retain(|append| !append.events.is_empty());
    batch.sort_by(|one, other| (&one.stream, one.after).cmp(&(&other.stream, other.after)));
    let mut joined: Vec<Append> = Vec::with_capacity(batch.len());
    for append in batch {
        match joined.last_mut() {
            Some(last) if last.stream == append.stream => {
                if last.last() != append.after {
                    return Err(AggregateError::Conflict(append.stream));
                }
                last.extend(append);
            }
            _ => joined.push(append),
        }
    }
    Ok(joined)
}

pub(super) async fn load_from<C: EventRows>(
    db: &mut C,
    stream: &str,
    snapshot_version: Option<u32>,
) -> Result<History, AggregateError> {
    history_of(stream, db.history(stream, snapshot_version).await?)
}

pub(super) async fn load_all_from<C: EventRows>(
    db: &mut C,
    streams: &[&str],
    snapshot_version: Option<u32>,
) -> Result<Vec<History>, AggregateError> {
    match streams {
        [] => Ok(Vec::new()),
        [stream] => Ok(vec![load_from(db, stream, snapshot_version).await?]),
        streams => histories_of(streams, db.histories(streams, snapshot_version).await?),
    }
}

pub(super) async fn page_from<C: EventRows>(
    db: &mut C,
    stream: &str,
    after: u64,
    limit: u32,
) -> Result<Vec<EventRecord>, AggregateError> {
    let rows: Vec<Row> = db.page(stream, after, limit).await?;
    rows.into_iter().map(|row| row.event(stream)).collect()
}

impl<P: AggregatePool> AsyncRepository for SqlEventStore<P> {
    async fn load(
        &self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> Result<History, AggregateError> {
        let mut session = self
            .pool
            .session(Access::ReadOnly, WaitPolicy::QUEUE)
            .await?;
        let history = load_from(session.connection(), stream, snapshot_version).await?;
        session.mark_unchanged();
        Ok(history)
    }

    async fn load_all(
        &self,
        streams: &[&str],
        snapshot_version: Option<u32>,
    ) -> Result<Vec<History>, AggregateError> {
        let mut session = self
            .pool
            .session(Access::ReadOnly, WaitPolicy::QUEUE)
            .await?;
        let histories = load_all_from(session.connection(), streams, snapshot_version).await?;
        session.mark_unchanged();
        Ok(histories)
    }

    async fn append(&self, batch: Vec<Append>) -> Result<(), AggregateError> {
        self.append_fenced(batch, &[]).await.map(drop)
    }

    async fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, AggregateError> {
        let mut session = self
            .pool
            .session(Access::ReadOnly, WaitPolicy::QUEUE)
            .await?;
        let events = page_from(session.connection(), stream, after, limit).await?;
        session.mark_unchanged();
        Ok(events)
    }

    fn snapshot_every(&self) -> u64 {
        self.snapshot_every
    }
}

impl<P: AggregatePool> EventStore for SqlEventStore<P> {
    async fn append_fenced(
        &self,
        batch: Vec<Append>,
        fences: &[Fence],
    ) -> Result<Vec<Option<ReleaseOutcome>>, AggregateError> {
        if batch.iter().all(|append| append.events.is_empty()) {
            return Ok(fences.iter().map(|_| None).collect());
        }
        let mut transaction = self.pool.open(BeginOptions::default()).await?;
        let is_here = |fence: &&Fence| fence.database == *self.pool.identity();
        let here: Vec<&Fence> = fences.iter().filter(is_here).collect();
        let outcomes = self.write(transaction.connection(), batch, &here).await?;
        let mut outcomes = outcomes.into_iter();
        let released = (fences.iter())
            .map(|fence| is_here(&fence).then(|| outcomes.next()).flatten())
            .collect();
        let committed = transaction.commit().await;
        committed.map_err(|error| rocket_tx::Error::of_commit(error, "the event store"))?;
        Ok(released)
    }
}
