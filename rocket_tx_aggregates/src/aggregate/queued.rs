//! Writers of one aggregate queue, instead of losing to each other.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::Error;
use super::event::EventRecord;
use super::repository::{AsyncRepository, AsyncUnlockableRepository};
use super::store::EventStore;
use super::stream::{Append, HeldLease, History};
use crate::lock::{AsyncLockManager, Hold, Keyed};

/// Makes a [`QueuedRepository`] of an event store.
pub trait Queueable: EventStore + Sized {
    /// Loading an aggregate to change it waits for a lock of `locks`.
    ///
    /// If the locks are leases in the store's own database, a commit deletes them in its own
    /// transaction, and is refused if one of them was lost. Leases elsewhere, and locks in memory,
    /// are given back after the commit, as well as may be: what is committed stays a success.
    fn queued_async_with<M: AsyncLockManager>(self, locks: M) -> QueuedRepository<Self, M> {
        QueuedRepository {
            store: self,
            locks,
            slots: Keyed::default(),
        }
    }
}

impl<R: EventStore> Queueable for R {}

/// An event store with a lock on what is loaded to be changed. For work outside of requests; in a
/// handler take the guard [`Aggregates`](super::Aggregates).
pub struct QueuedRepository<R, M: AsyncLockManager> {
    store: R,
    locks: M,
    slots: Keyed<HoldSlot<M::Hold>>,
}

/// Owned by a loaded aggregate. Dropping it releases the lock.
struct HoldSlot<H: Hold> {
    stream: Arc<str>,
    /// Empty once it was given back.
    hold: Mutex<Option<H>>,
    slots: Keyed<Self>,
}

impl<H: Hold> Drop for HoldSlot<H> {
    fn drop(&mut self) {
        self.slots.forget(&self.stream);
    }
}

impl<R: EventStore, M: AsyncLockManager> AsyncRepository for QueuedRepository<R, M> {
    async fn lease(&self, streams: &[&str]) -> Result<Vec<Option<HeldLease>>, Error> {
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

    async fn load(&self, stream: &str, snapshot_version: Option<u32>) -> Result<History, Error> {
        self.store.load(stream, snapshot_version).await
    }

    /// Dropping the future once the transaction was begun leaves it to the database whether it is
    /// committed; the locks are given back either way.
    async fn append(&self, batch: Vec<Append>) -> Result<(), Error> {
        let slots: Vec<Arc<HoldSlot<M::Hold>>> = batch
            .iter()
            .filter_map(|append| append.lease.as_ref()?.downcast())
            .collect();
        let mut fences = Vec::new();
        // Each with the place of its fence, if it has one.
        let mut taken = Vec::new();
        for slot in &slots {
            let hold = slot.hold.lock().take();
            if let Some(mut hold) = hold {
                let fence = hold.begin_fenced_release().await;
                let place = fence.is_some().then_some(fences.len());
                fences.extend(fence);
                taken.push((slot, hold, place));
            }
        }
        match self.store.append_fenced(&batch, &fences).await {
            Ok(released) => {
                for (_, hold, place) in taken {
                    match place.and_then(|place| released[place]) {
                        Some(released) => hold.mark_released(released.wanted),
                        // In a task of its own, if it takes a statement: the commit is a success.
                        None => drop(hold),
                    }
                }
                Ok(())
            }
            Err(error) => {
                // The aggregates go on owning them.
                for (slot, mut hold, _) in taken {
                    hold.resume_renewal();
                    *slot.hold.lock() = Some(hold);
                }
                Err(error)
            }
        }
    }

    async fn page(&self, stream: &str, after: u64, limit: u32) -> Result<Vec<EventRecord>, Error> {
        self.store.page(stream, after, limit).await
    }

    fn snapshot_every(&self) -> u64 {
        self.store.snapshot_every()
    }
}

impl<R: EventStore, M: AsyncLockManager> AsyncUnlockableRepository for QueuedRepository<R, M> {
    async fn unlock(&self, stream: &str) -> Result<(), Error> {
        let slot = self.slots.find(stream);
        let hold = slot.and_then(|slot| slot.hold.lock().take());
        match hold {
            Some(hold) => Ok(hold.release().await?),
            None => Ok(()),
        }
    }
}
