//! Loading, changing and committing aggregates.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use super::definition::{Aggregate, replayed, snapshot_of};
use super::error::Error;
use super::event::EventRecord;
use super::stream::{Append, HeldLease, History};

/// Streams of events, and perhaps leases on them. [`AsyncAggregateRepository`] makes aggregates of
/// it.
pub trait AsyncRepository: Send + Sync {
    /// Waits for the leases of `streams`, all of them, in an order that cannot deadlock. In the
    /// order of `streams`; `None` where a repository has no leases.
    ///
    /// # Errors
    ///
    /// [`Error::Lock`]; those that were taken are released.
    fn lease(
        &self,
        streams: &[&str],
    ) -> impl Future<Output = Result<Vec<Option<HeldLease>>, Error>> + Send {
        let none = streams.iter().map(|_| None).collect();
        async { Ok(none) }
    }

    /// Reads a stream, with its snapshot if that is of the given version.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a payload that is no JSON, [`Error::Database`].
    fn load(
        &self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> impl Future<Output = Result<History, Error>> + Send;

    /// Called when aggregates were loaded with their leases, and no connection is held.
    fn loaded(&self, streams: &[&str]) -> impl Future<Output = ()> + Send {
        let _ = streams;
        async {}
    }

    /// Adds to streams, to all or to none, and frees the leases that they were loaded with.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if another writer was first; [`Error::Lock`] if a lease was lost.
    fn append(&self, batch: Vec<Append>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Stores what is staged, for a caller that must see the error itself. Where nothing is staged
    /// there is nothing to do.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// Events of a stream after a sequence, in order, `limit` at most.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`], [`Error::Database`].
    fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<EventRecord>, Error>> + Send;

    /// A snapshot is due whenever this many events have happened; 0 is never.
    fn snapshot_every(&self) -> u64;
}

/// A repository whose leases can be given back before anything is committed.
pub trait AsyncUnlockableRepository: AsyncRepository {
    /// Gives back the lease of `stream`, if this repository has it; resolves when others can have
    /// it.
    ///
    /// # Errors
    ///
    /// [`Error::Lock`] if another holder has it by now.
    fn unlock(&self, stream: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// An aggregate is given up without a commit. What `lease` it was loaded with is given back.
    ///
    /// # Errors
    ///
    /// As [`unlock`](Self::unlock).
    fn abort(
        &self,
        stream: &str,
        lease: Option<HeldLease>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
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
/// # async fn example() -> Result<(), rocket_tx_aggregates::aggregate::Error> {
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
    /// The aggregates of type `A` in `repository`.
    pub fn new(repository: R) -> Self {
        Self {
            repository,
            aggregate: PhantomData,
        }
    }

    /// The repository.
    pub fn repository(&self) -> &R {
        &self.repository
    }

    /// Loads an aggregate to change it. It owns its lease: dropping it gives that back, and so does
    /// `None` at once.
    ///
    /// # Errors
    ///
    /// [`Error::Id`], [`Error::Lock`], [`Error::Corrupt`], and what the database meets.
    ///
    /// # Cancellation
    ///
    /// Dropping the future gives the lease back, as soon as what it had begun has ended.
    pub async fn get(&self, id: &str) -> Result<Option<A>, Error> {
        let mut all = self.get_all(&[id]).await?;
        Ok(all.pop().flatten())
    }

    /// Loads several to change them, within one longest wait. Whatever their order here, requests
    /// that load several never wait for each other in a circle.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); then none is held.
    pub async fn get_all(&self, ids: &[&str]) -> Result<Vec<Option<A>>, Error> {
        let streams = ids.iter().map(|id| A::stream(id));
        let streams = streams.collect::<Result<Vec<String>, Error>>()?;
        let names: Vec<&str> = streams.iter().map(String::as_str).collect();
        let leases = self.repository.lease(&names).await?;
        let mut all = Vec::with_capacity(ids.len());
        for ((id, stream), lease) in ids.iter().zip(&streams).zip(leases) {
            let mut found = self.read(stream, id).await?;
            if let Some(aggregate) = &mut found {
                aggregate.entity_mut().lease = lease;
            }
            all.push(found);
        }
        self.repository.loaded(&names).await;
        Ok(all)
    }

    /// Loads an aggregate to look at it: without a lease, and without waiting.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), but for the lock.
    pub async fn peek(&self, id: &str) -> Result<Option<A>, Error> {
        self.read(&A::stream(id)?, id).await
    }

    /// Commits what has happened to an aggregate, and gives its lease back. One that was only
    /// peeked at, or is new, needs none.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if another writer was first; [`Error::Lock`] if the lease was lost. The
    /// aggregate is as before then.
    pub async fn commit(&self, aggregate: &mut A) -> Result<(), Error> {
        self.commit_all(&mut [aggregate]).await
    }

    /// Commits several aggregates, all of them or none.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn commit_all(&self, aggregates: &mut [&mut A]) -> Result<(), Error> {
        let batch = aggregates.iter().map(|aggregate| self.append_of(aggregate));
        let batch = batch.collect::<Result<Vec<Append>, Error>>()?;
        self.repository.append(batch).await?;
        for aggregate in aggregates {
            let entity = aggregate.entity_mut();
            entity.committed();
            entity.lease = None;
        }
        Ok(())
    }

    /// Stores what is staged, for a handler that must see the error itself.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit). A request whose flush has failed, or was dropped half-way, is
    /// rolled back whatever it answers.
    pub async fn flush(&self) -> Result<(), Error> {
        self.repository.flush().await
    }

    /// The events of an aggregate after a sequence, in order, `limit` at most.
    ///
    /// # Errors
    ///
    /// [`Error::Id`], [`Error::Corrupt`], and what the database meets.
    pub async fn events(
        &self,
        id: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, Error> {
        self.repository.page(&A::stream(id)?, after, limit).await
    }

    async fn read(&self, stream: &str, id: &str) -> Result<Option<A>, Error> {
        let history = (self.repository)
            .load(stream, Some(A::SNAPSHOT_VERSION))
            .await?;
        match replayed(stream, id, &history) {
            // A snapshot is only a shortcut: what it cannot tell, the events can.
            Err(error) if history.snapshot.is_some() => {
                tracing::warn!(%error, "a snapshot is passed over");
                let history = self.repository.load(stream, None).await?;
                replayed(stream, id, &history)
            }
            result => result,
        }
    }

    fn append_of(&self, aggregate: &A) -> Result<Append, Error> {
        let entity = aggregate.entity();
        let (before, after) = (entity.committed_version(), entity.version());
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
    /// Gives an aggregate up, with whatever has happened to it since it was loaded, by the
    /// repository's own [hook](AsyncUnlockableRepository::abort).
    ///
    /// # Errors
    ///
    /// [`Error::Lock`] if another holder has its lease by now.
    pub async fn abort(&self, mut aggregate: A) -> Result<(), Error> {
        let lease = aggregate.entity_mut().lease.take();
        let stream = A::stream(aggregate.id())?;
        self.repository.abort(&stream, lease).await
    }

    /// Releases the lease of `id`, if this repository has it.
    ///
    /// # Errors
    ///
    /// [`Error::Lock`] if another holder has it by now.
    pub async fn unlock(&self, id: &str) -> Result<(), Error> {
        self.repository.unlock(&A::stream(id)?).await
    }
}
