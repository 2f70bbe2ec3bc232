//! Locks within this process only, for tests and for services that run as one process.

use std::sync::Arc;
use std::time::Duration;

use super::async_lock::{AsyncLockManager, Hold, in_order};
use super::deadline::Deadline;
use super::error::LockError;
use super::gate::{Gate, Pass};
use super::keyed::Keyed;
use super::manual::{Lockable, ManualLock, Slot};

/// Makes [`InMemoryAsyncLock`]s. A clone is another handle on the same locks.
///
/// A task that waits for a key that it holds itself, for example because it has loaded an aggregate
/// twice, gets [`LockError::TimedOut`] after the [longest wait](Self::with_max_wait).
#[derive(Clone)]
pub struct InMemoryAsyncLockManager {
    keys: Keyed<Key>,
    slots: Keyed<Slot<Key>>,
    max_wait: Option<Duration>,
}

/// A lock on one key in this process. Waiters are served in the order of their arrival.
pub type InMemoryAsyncLock = ManualLock<Key>;

/// A locked key in this process. Dropping it frees the key at once.
pub struct InMemoryHold {
    key: Arc<Key>,
    _pass: Pass,
}

/// The state of one key. It exists while the key is held, is waited for, or has a lock handle.
pub struct Key {
    name: Arc<str>,
    gate: Gate,
    keys: Keyed<Key>,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.keys.forget(&self.name);
    }
}

impl Default for InMemoryAsyncLockManager {
    fn default() -> Self {
        Self {
            keys: Keyed::default(),
            slots: Keyed::default(),
            max_wait: Some(Duration::from_secs(5)),
        }
    }
}

impl InMemoryAsyncLockManager {
    /// Makes a manager without locks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a call waits at most. Default 5 s, as for leases; `None` sets no limit.
    pub fn with_max_wait(mut self, max_wait: Option<Duration>) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Returns how many keys are locked, are waited for, or have a lock handle.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    fn key(&self, key: &str) -> Result<Arc<Key>, LockError> {
        let keys = self.keys.clone();
        self.keys.get(key, |name| Key {
            name,
            gate: Gate::default(),
            keys,
        })
    }
}

impl AsyncLockManager for InMemoryAsyncLockManager {
    type Lock = InMemoryAsyncLock;
    type Hold = InMemoryHold;

    fn get_lock(&self, key: &str) -> Result<Arc<InMemoryAsyncLock>, LockError> {
        ManualLock::new(&self.slots, self.key(key)?, self.max_wait)
    }

    async fn hold_all(&self, keys: &[&str]) -> Result<Vec<InMemoryHold>, LockError> {
        let deadline = Deadline::after(self.max_wait);
        let mut holds = Vec::with_capacity(keys.len());
        for key in in_order(keys) {
            holds.push(self.key(key)?.enter(deadline).await?);
        }
        Ok(holds)
    }
}

impl Key {
    async fn enter(self: Arc<Self>, deadline: Deadline) -> Result<InMemoryHold, LockError> {
        let pass = deadline.timeout(&self.name, self.gate.enter()).await?;
        Ok(InMemoryHold {
            key: self,
            _pass: pass,
        })
    }
}

impl Lockable for Key {
    type Hold = InMemoryHold;

    fn name(&self) -> &str {
        &self.name
    }

    async fn hold(self: &Arc<Self>, max_wait: Option<Duration>) -> Result<InMemoryHold, LockError> {
        Arc::clone(self).enter(Deadline::after(max_wait)).await
    }

    async fn try_hold(self: &Arc<Self>) -> Result<Option<InMemoryHold>, LockError> {
        Ok(self.gate.try_enter().map(|pass| InMemoryHold {
            key: Arc::clone(self),
            _pass: pass,
        }))
    }
}

impl Hold for InMemoryHold {
    fn key(&self) -> &str {
        &self.key.name
    }

    async fn release(self) -> Result<(), LockError> {
        Ok(())
    }

    fn mark_released(self, _wanted: bool) {}
}
