//! Locks that live in this process alone: for tests, and for services of one process.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::async_lock::{Hold, in_order};
use super::deadline::Deadline;
use super::gate::{Gate, Pass};
use super::keyed::Keyed;
use super::{AsyncLock, AsyncLockManager, LockError};

/// Makes [`InMemoryAsyncLock`]s. A clone is another handle on the same locks.
#[derive(Clone, Default)]
pub struct InMemoryAsyncLockManager {
    keys: Keyed<Key>,
    max_wait: Option<Duration>,
}

/// A lock on one key in this process. First come, first served.
///
/// A locked key stays locked, whoever drops their handle on it, until somebody unlocks it through
/// any handle.
pub struct InMemoryAsyncLock {
    key: Arc<Key>,
    max_wait: Option<Duration>,
}

/// A key that is locked in this process. Dropping it frees the key at once.
pub struct InMemoryHold {
    key: Arc<Key>,
    _pass: Pass,
}

struct Key {
    name: Arc<str>,
    gate: Gate,
    /// What [`AsyncLock::lock`] took. While it is locked, the key keeps itself alive.
    held: Mutex<Option<InMemoryHold>>,
    keys: Keyed<Key>,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.keys.forget(&self.name);
    }
}

impl InMemoryAsyncLockManager {
    /// No locks yet, and no limit on waiting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits no longer than this. Default: for ever.
    pub fn with_max_wait(mut self, max_wait: Option<Duration>) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// How many keys are locked, waited for, or kept by somebody.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    fn key(&self, key: &str) -> Result<Arc<Key>, LockError> {
        let keys = self.keys.clone();
        self.keys.get(key, |name| Key {
            name,
            gate: Gate::default(),
            held: Mutex::default(),
            keys,
        })
    }
}

impl AsyncLockManager for InMemoryAsyncLockManager {
    type Lock = InMemoryAsyncLock;
    type Hold = InMemoryHold;

    fn get_lock(&self, key: &str) -> Result<Arc<InMemoryAsyncLock>, LockError> {
        Ok(Arc::new(InMemoryAsyncLock {
            key: self.key(key)?,
            max_wait: self.max_wait,
        }))
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
        let pass = deadline.bound(&self.name, self.gate.enter()).await?;
        Ok(InMemoryHold {
            key: self,
            _pass: pass,
        })
    }
}

impl AsyncLock for InMemoryAsyncLock {
    async fn lock(&self) -> Result<(), LockError> {
        let deadline = Deadline::after(self.max_wait);
        let hold = Arc::clone(&self.key).enter(deadline).await?;
        *self.key.held.lock() = Some(hold);
        Ok(())
    }

    async fn try_lock(&self) -> Result<bool, LockError> {
        let Some(pass) = self.key.gate.try_enter() else {
            return Ok(false);
        };
        *self.key.held.lock() = Some(InMemoryHold {
            key: Arc::clone(&self.key),
            _pass: pass,
        });
        Ok(true)
    }

    async fn unlock(&self) -> Result<(), LockError> {
        // Dropped outside the mutex: it wakes the next one, and may drop the key itself.
        let held = self.key.held.lock().take();
        drop(held);
        Ok(())
    }
}

impl Hold for InMemoryHold {
    fn key(&self) -> &str {
        &self.key.name
    }

    async fn release(self) -> Result<(), LockError> {
        Ok(())
    }

    fn released(self, _wanted: bool) {}
}
