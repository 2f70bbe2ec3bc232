//! Loading, changing and committing aggregates.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use super::definition::{Aggregate, replayed, snapshot_of};
use super::error::AggregateError;
use super::event::EventRecord;
use super::stream::{Append, HeldLease, History};

/// A repository of event streams, with or without leases on them. [`AsyncAggregateRepository`]
/// turns the streams into aggregates.
pub trait AsyncRepository: Send + Sync {
    /// Waits for the leases of all `streams`, and takes them in an order that cannot deadlock.
    ///
    /// Returns them in the order of `streams`. An element is `None` if the repository has no
    /// leases.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Lock`] if a lease was not acquired. The leases taken before are released.
    fn lease(
        &self,
        streams: &[&str],
    ) -> impl Future<Output = Result<Vec<Option<HeldLease>>, AggregateError>> + Send {
        let none = streams.iter().map(|_| None).collect();
        async { Ok(none) }
    }

    /// Reads a stream, with its snapshot if the snapshot has the given version.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Corrupt`] if a payload is not JSON, [`AggregateError::Database`].
    fn load(
        &self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> impl Future<Output = Result<History, AggregateError>> + Send;

    /// Reads several streams, in the order of `streams`. Repositories override it to read them with
    /// one query.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    fn load_all(
        &self,
        streams: &[&str],
        snapshot_version: Option<u32>,
    ) -> impl Future<Output = Result<Vec<History>, AggregateError>> + Send {
        async move {
            let mut all = Vec::with_capacity(streams.len());
            for stream in streams {
                all.push(self.load(stream, snapshot_version).await?);
            }
            Ok(all)
        }
    }

    /// Called after aggregates were loaded with their leases. A connection that was acquired only
    /// for the load has been returned by then.
    fn loaded(&self, streams: &[&str]) -> impl Future<Output = ()> + Send {
        let _ = streams;
        async {}
    }

    /// Appends events to streams, to all of them or to none, and releases the leases that the
    /// aggregates were loaded with.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Conflict`] if another writer has appended first; [`AggregateError::Lock`]
    /// if a lease was lost.
    fn append(&self, batch: Vec<Append>)
    -> impl Future<Output = Result<(), AggregateError>> + Send;

    /// Writes staged events now, so that the caller sees the error itself. Does nothing in a
    /// repository that does not stage events.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    fn flush(&self) -> impl Future<Output = Result<(), AggregateError>> + Send {
        async { Ok(()) }
    }

    /// Returns at most `limit` events of a stream, in order, starting after the sequence `after`.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Corrupt`], [`AggregateError::Database`].
    fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<EventRecord>, AggregateError>> + Send;

    /// Returns the number of events between snapshots; 0 means no snapshots.
    fn snapshot_every(&self) -> u64;
}

/// A repository whose leases can be released without a commit.
pub trait AsyncUnlockableRepository: AsyncRepository {
    /// Releases the lease of `stream`, if this repository holds it. Returns once others can take
    /// the lease.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Lock`] if the lease was lost before, or if its row could not be deleted
    /// and remains until it expires.
    fn unlock(&self, stream: &str) -> impl Future<Output = Result<(), AggregateError>> + Send;

    /// Discards an aggregate without a commit, and releases the `lease` that it was loaded with.
    ///
    /// # Errors
    ///
    /// As [`unlock`](Self::unlock).
    fn abort(
        &self,
        stream: &str,
        lease: Option<HeldLease>,
    ) -> impl Future<Output = Result<(), AggregateError>> + Send {
        async move {
            match lease {
                Some(_) => self.unlock(stream).await,
                None => Ok(()),
            }
        }
    }
}

/// The aggregates of type `A` in a repository.
///
/// ```
/// # use rocket_tx_aggregates::aggregate::{Aggregate, Entity, Event};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Debug, Clone, Default, Serialize, Deserialize)]
/// # struct Switch { #[serde(skip)] entity: Entity, on: bool }
/// # #[derive(Serialize, Deserialize)]
/// # struct Flipped;
/// # impl Event<Switch> for Flipped {
/// #     const NAME: &'static str = "flipped";
/// #     fn apply(self, switch: &mut Switch) { switch.on = !switch.on }
/// # }
/// # rocket_tx_aggregates::aggregate!(Switch as "switch", entity, [Flipped]);
/// use rocket_tx_aggregates::aggregate::{AsyncAggregateRepository, InMemoryEventStore, Queueable};
/// use rocket_tx_aggregates::lock::InMemoryAsyncLockManager;
///
/// # async fn example() -> Result<(), rocket_tx_aggregates::aggregate::AggregateError> {
/// let store = InMemoryEventStore::new().queued_async_with(InMemoryAsyncLockManager::new());
/// let switches = AsyncAggregateRepository::<_, Switch>::new(store);
///
/// let mut switch = Switch::fresh("kitchen")?;
/// switch.record(Flipped)?;
/// switches.commit(&mut switch).await?;
///
/// let mut switch = switches.get("kitchen").await?.expect("it was committed");
/// switch.record(Flipped)?;
/// switches.commit(&mut switch).await?;
/// assert_eq!(switches.peek("kitchen").await?.expect("it is there").version(), 2);
/// # Ok(()) }
/// # rocket::async_test(example()).unwrap();
/// ```
pub struct AsyncAggregateRepository<R, A> {
    repository: R,
    aggregate: PhantomData<fn() -> A>,
}

impl<R: AsyncRepository, A: Aggregate> AsyncAggregateRepository<R, A> {
    /// Creates a repository of the aggregates of type `A` over `repository`.
    pub fn new(repository: R) -> Self {
        Self {
            repository,
            aggregate: PhantomData,
        }
    }

    /// Returns the repository of the streams.
    pub fn repository(&self) -> &R {
        &self.repository
    }

    /// Loads an aggregate in order to change it, with its lease.
    ///
    /// The aggregate owns the lease; dropping the aggregate releases it. If there is no such
    /// aggregate, `get` releases the lease itself and returns `None`.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Id`], [`AggregateError::Lock`], [`AggregateError::Corrupt`], and errors of
    /// the database.
    ///
    /// # Cancellation
    ///
    /// Dropping the future releases the lease, once a statement that is under way has ended.
    pub async fn get(&self, id: &str) -> Result<Option<A>, AggregateError> {
        let mut all = self.get_all(&[id]).await?;
        Ok(all.pop().flatten())
    }

    /// Loads several aggregates in order to change them, with their leases.
    ///
    /// The longest wait for leases covers all of them together. The leases are taken in sorted
    /// order, whatever the order of `ids`, so calls of this method cannot deadlock with each other.
    /// Returns the aggregates in the order of `ids`.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get). No lease is held then.
    pub async fn get_all(&self, ids: &[&str]) -> Result<Vec<Option<A>>, AggregateError> {
        let streams = ids.iter().map(|id| A::stream(id));
        let streams = streams.collect::<Result<Vec<String>, AggregateError>>()?;
        let names: Vec<&str> = streams.iter().map(String::as_str).collect();
        let leases = self.repository.lease(&names).await?;
        let version = Some(A::SNAPSHOT_VERSION);
        let histories = self.repository.load_all(&names, version).await?;
        let mut all = Vec::with_capacity(ids.len());
        for (((id, stream), history), lease) in ids.iter().zip(&streams).zip(&histories).zip(leases)
        {
            let mut found = self.rebuilt(stream, id, history).await?;
            if let Some(aggregate) = &mut found {
                aggregate.entity_mut().hold(lease);
            }
            all.push(found);
        }
        self.repository.loaded(&names).await;
        Ok(all)
    }

    /// Loads an aggregate in order to read it. Takes no lease, and waits for none.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), except [`AggregateError::Lock`].
    pub async fn peek(&self, id: &str) -> Result<Option<A>, AggregateError> {
        self.read(&A::stream(id)?, id).await
    }

    /// Commits the new events of an aggregate, and releases its lease.
    ///
    /// A new aggregate, or one loaded with [`peek`](Self::peek), is committed without a lease.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Conflict`] if another writer has appended first; [`AggregateError::Lock`]
    /// if the lease was lost; [`AggregateError::NoEvents`] if the aggregate is new and has no
    /// events. The aggregate is then unchanged.
    pub async fn commit(&self, aggregate: &mut A) -> Result<(), AggregateError> {
        self.commit_all(&mut [aggregate]).await
    }

    /// Commits several aggregates, all of them or none.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn commit_all(&self, aggregates: &mut [&mut A]) -> Result<(), AggregateError> {
        let batch = aggregates.iter().map(|aggregate| self.append_of(aggregate));
        let batch = batch.collect::<Result<Vec<Append>, AggregateError>>()?;
        self.repository.append(batch).await?;
        for aggregate in aggregates {
            let entity = aggregate.entity_mut();
            entity.committed();
            entity.lease = None;
        }
        Ok(())
    }

    /// Writes staged events to the request's transaction now, so that the handler sees the error
    /// itself. Outside of requests no events are staged, and nothing happens.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit). If the flush fails, or its future is dropped half-way, the
    /// request is rolled back, whatever its response.
    pub async fn flush(&self) -> Result<(), AggregateError> {
        self.repository.flush().await
    }

    /// Returns at most `limit` events of an aggregate, in order, starting after the sequence
    /// `after`.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Id`], [`AggregateError::Corrupt`], and errors of the database.
    pub async fn events(
        &self,
        id: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, AggregateError> {
        self.repository.page(&A::stream(id)?, after, limit).await
    }

    async fn read(&self, stream: &str, id: &str) -> Result<Option<A>, AggregateError> {
        let version = Some(A::SNAPSHOT_VERSION);
        let history = self.repository.load(stream, version).await?;
        self.rebuilt(stream, id, &history).await
    }

    async fn rebuilt(
        &self,
        stream: &str,
        id: &str,
        history: &History,
    ) -> Result<Option<A>, AggregateError> {
        match replayed(stream, id, history) {
            // A snapshot only saves time: replaying all events gives the same state.
            Err(error) if history.snapshot.is_some() => {
                tracing::warn!(%error, "a snapshot cannot be used; the aggregate is rebuilt from all its events");
                let history = self.repository.load(stream, None).await?;
                replayed(stream, id, &history)
            }
            result => result,
        }
    }

    fn append_of(&self, aggregate: &A) -> Result<Append, AggregateError> {
        let entity = aggregate.entity();
        let (before, after) = (entity.committed_version(), entity.version());
        if after == 0 {
            return Err(AggregateError::NoEvents(A::stream(entity.id())?));
        }
        let every = self.repository.snapshot_every();
        let due = every > 0 && before / every < after / every;
        Ok(Append {
            stream: A::stream(entity.id())?,
            after: before,
            events: entity.new_events().to_vec(),
            snapshot: due.then(|| snapshot_of(aggregate)).transpose()?,
            aggregate: Arc::new(aggregate.clone()),
            lease: entity.lease.clone(),
        })
    }
}

impl<R: AsyncUnlockableRepository, A: Aggregate> AsyncAggregateRepository<R, A> {
    /// Discards an aggregate and its new events, and releases its lease. Calls
    /// [`AsyncUnlockableRepository::abort`] of the repository.
    ///
    /// # Errors
    ///
    /// As [`unlock`](Self::unlock).
    pub async fn abort(&self, mut aggregate: A) -> Result<(), AggregateError> {
        let lease = aggregate.entity_mut().discard();
        let stream = A::stream(aggregate.id())?;
        self.repository.abort(&stream, lease).await
    }

    /// Releases the lease of the aggregate `id`, if this repository holds it.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Id`]; [`AggregateError::Lock`] if the lease was lost before, or if its row
    /// could not be deleted and remains until it expires.
    pub async fn unlock(&self, id: &str) -> Result<(), AggregateError> {
        self.repository.unlock(&A::stream(id)?).await
    }
}
