//! Locking and unlocking by hand, over the holds of any manager.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::async_lock::{AsyncLock, Hold};
use super::error::LockError;
use super::keyed::Keyed;

/// A key of a manager.
pub trait Lockable: Send + Sync + Sized + 'static {
    /// Frees the key when it is dropped.
    type Hold: Hold;

    /// The key's text.
    fn name(&self) -> &str;

    /// Waits until the key is ours, no longer than `max_wait`.
    fn hold(
        self: &Arc<Self>,
        max_wait: Option<Duration>,
    ) -> impl Future<Output = Result<Self::Hold, LockError>> + Send;

    /// Takes the key if it is free now.
    fn try_hold(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<Option<Self::Hold>, LockError>> + Send;
}

/// A lock on one key, as [`get_lock`](super::AsyncLockManager::get_lock) makes it.
///
/// A locked key stays locked for this process when handles are dropped, until it is unlocked
/// through any handle.
pub struct ManualLock<K: Lockable> {
    slot: Arc<Slot<K>>,
    max_wait: Option<Duration>,
}

/// Shared by all handles on one key.
pub(super) struct Slot<K: Lockable> {
    key: Arc<K>,
    /// The hold while the key is locked. It carries the slot itself, so that the slot outlives the
    /// handles.
    held: Mutex<Option<(K::Hold, Arc<Self>)>>,
    slots: Keyed<Self>,
}

impl<K: Lockable> Drop for Slot<K> {
    fn drop(&mut self) {
        self.slots.forget(self.key.name());
    }
}

impl<K: Lockable> ManualLock<K> {
    pub(super) fn new(
        slots: &Keyed<Slot<K>>,
        key: Arc<K>,
        max_wait: Option<Duration>,
    ) -> Result<Arc<Self>, LockError> {
        let slot = slots.get(key.name(), |_| Slot {
            key: Arc::clone(&key),
            held: Mutex::default(),
            slots: slots.clone(),
        })?;
        Ok(Arc::new(Self { slot, max_wait }))
    }

    fn put(&self, hold: K::Hold) {
        *self.slot.held.lock() = Some((hold, Arc::clone(&self.slot)));
    }
}

impl<K: Lockable> AsyncLock for ManualLock<K> {
    async fn lock(&self) -> Result<(), LockError> {
        self.put(self.slot.key.hold(self.max_wait).await?);
        Ok(())
    }

    async fn try_lock(&self) -> Result<bool, LockError> {
        let hold = self.slot.key.try_hold().await?;
        Ok(hold.map(|hold| self.put(hold)).is_some())
    }

    async fn unlock(&self) -> Result<(), LockError> {
        // Dropped outside the mutex: it wakes the next waiter, and may drop the key itself.
        let held = self.slot.held.lock().take();
        match held {
            Some((hold, _slot)) => hold.release().await,
            None => Ok(()),
        }
    }
}
