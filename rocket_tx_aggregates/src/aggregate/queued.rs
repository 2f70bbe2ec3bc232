//! [`QueuedRepository`]: writers of one aggregate wait for each other, instead of failing with a
//! conflict.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::AggregateError;
use super::event::EventRecord;
use super::repository::{AsyncRepository, AsyncUnlockableRepository};
use super::store::EventStore;
use super::stream::{Append, HeldLease, History};
use crate::lock::{AsyncLockManager, Hold, Keyed};

/// Adds locks to an event store, which makes it a [`QueuedRepository`].
pub trait Queueable: EventStore + Sized {
    /// Returns a repository in which loading an aggregate to change it first takes a lock from
    /// `locks`.
    ///
    /// If the locks are leases in the store's own database, the transaction that stores the events
    /// also deletes the lease rows, and the commit fails if a lease was lost. Leases in another
    /// database, and locks in memory, are released after the commit. If such a release fails, the
    /// commit is still a success.
    fn queued_async_with<M: AsyncLockManager>(self, locks: M) -> QueuedRepository<Self, M> {
        QueuedRepository {
            store: self,
            locks,
            slots: Keyed::default(),
        }
    }
}

impl<R: EventStore> Queueable for R {}

/// An event store that locks each aggregate that is loaded in order to be changed.
///
/// Use it for work outside of requests. In a handler, use the guard
/// [`Aggregates`](super::Aggregates).
pub struct QueuedRepository<R, M: AsyncLockManager> {
    store: R,
    locks: M,
    slots: Keyed<HoldSlot<M::Hold>>,
}

/// The lock of a loaded aggregate, which owns this slot. Dropping the slot releases the lock.
struct HoldSlot<H: Hold> {
    stream: Arc<str>,
    /// `None` while a commit uses the lock, and after its release.
    hold: Mutex<Option<H>>,
    slots: Keyed<Self>,
}

impl<H: Hold> Drop for HoldSlot<H> {
    fn drop(&mut self) {
        self.slots.forget(&self.stream);
    }
}

impl<R: EventStore, M: AsyncLockManager> AsyncRepository for QueuedRepository<R, M> {
    async fn lease(&self, streams: &[&str]) -> Result<Vec<Option<HeldLease>>, AggregateError> {
        let holds = self.locks.hold_all(streams).await?;
        let mut leases = HashMap::new();
        for hold in holds {
            let key = hold.key().to_owned();
            let slot = self.slots.put(&key, |stream| HoldSlot {
                stream,
                hold: Mutex::new(Some(hold)),
                slots: self.slots.clone(),
            });
            leases.insert(key, HeldLease::new(slot));
        }
        let of = |stream: &&str| leases.get(*stream).cloned();
        Ok(streams.iter().map(of).collect())
    }

    async fn load(
        &self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> Result<History, AggregateError> {
        self.store.load(stream, snapshot_version).await
    }

    async fn load_all(
        &self,
        streams: &[&str],
        snapshot_version: Option<u32>,
    ) -> Result<Vec<History>, AggregateError> {
        self.store.load_all(streams, snapshot_version).await
    }

    /// # Cancellation
    ///
    /// If the future is dropped after the transaction has begun, the transaction may or may not be
    /// committed. The locks are released in both cases.
    async fn append(&self, batch: Vec<Append>) -> Result<(), AggregateError> {
        let slots: Vec<Arc<HoldSlot<M::Hold>>> = batch
            .iter()
            .filter_map(|append| append.lease.as_ref()?.downcast())
            .collect();
        let mut fences = Vec::new();
        // The locks, each with the index of its fence if it has one.
        let mut taken = Vec::new();
        for slot in &slots {
            let hold = slot.hold.lock().take();
            if let Some(mut hold) = hold {
                let fence = hold.begin_fenced_release().await;
                let index = fence.is_some().then_some(fences.len());
                fences.extend(fence);
                taken.push((slot, hold, index));
            }
        }
        match self.store.append_fenced(batch, &fences).await {
            Ok(released) => {
                for (_, hold, index) in taken {
                    match index.and_then(|index| released[index]) {
                        Some(released) => hold.mark_released(released.wanted),
                        // The transaction has not released this lock. Dropping it does, in a
                        // separate task if that takes a statement, so the commit stays a success.
                        None => drop(hold),
                    }
                }
                Ok(())
            }
            Err(error) => {
                // The commit failed, or its outcome is unknown. The aggregates keep their locks.
                for (slot, mut hold, _) in taken {
                    hold.resume_renewal();
                    *slot.hold.lock() = Some(hold);
                }
                Err(error)
            }
        }
    }

    async fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, AggregateError> {
        self.store.page(stream, after, limit).await
    }

    fn snapshot_every(&self) -> u64 {
        self.store.snapshot_every()
    }
}

impl<R: EventStore, M: AsyncLockManager> AsyncUnlockableRepository for QueuedRepository<R, M> {
    async fn unlock(&self, stream: &str) -> Result<(), AggregateError> {
        let slot = self.slots.find(stream);
        let hold = slot.and_then(|slot| slot.hold.lock().take());
        match hold {
            Some(hold) => Ok(hold.release().await?),
            None => Ok(()),
        }
    }
}
