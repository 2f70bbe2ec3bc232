//! Explicit locking and unlocking, on top of the holds of any manager.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::async_lock::{AsyncLock, Hold};
use super::error::LockError;
use super::keyed::Keyed;

/// A key of a manager.
pub trait Lockable: Send + Sync + Sized + 'static {
    /// The locked key. Dropping it frees the key.
    type Hold: Hold;

    /// Returns the text of the key.
    fn name(&self) -> &str;

    /// Waits until this process has locked the key, but no longer than `max_wait`.
    fn hold(
        self: &Arc<Self>,
        max_wait: Option<Duration>,
    ) -> impl Future<Output = Result<Self::Hold, LockError>> + Send;

    /// Locks the key if it is free now.
    fn try_hold(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<Option<Self::Hold>, LockError>> + Send;
}

/// A lock on one key, returned by [`get_lock`](super::AsyncLockManager::get_lock).
///
/// Dropping the handles does not unlock the key. It stays locked until it is unlocked through any
/// handle of this process.
pub struct ManualLock<K: Lockable> {
    slot: Arc<Slot<K>>,
    max_wait: Option<Duration>,
}

/// Shared by all handles on one key.
pub(super) struct Slot<K: Lockable> {
    key: Arc<K>,
    /// The hold while the key is locked. A reference to the slot itself keeps the slot alive after
    /// its handles are dropped.
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
        // The hold is released and dropped outside the mutex: this wakes the next waiter, and may
        // drop the slot and the key.
        let held = self.slot.held.lock().take();
        match held {
            Some((hold, _slot)) => hold.release().await,
            None => Ok(()),
        }
    }
}
