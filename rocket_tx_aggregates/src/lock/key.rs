//! The state of one key, shared by the tasks of this process.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::gate::Gate;
use super::keyed::Keyed;
use super::stats::Counters;
use super::store::LeaseStore;

/// Settings of a lock manager.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) lease_ttl: Duration,
    pub(super) retry_interval: Duration,
    pub(super) max_wait: Option<Duration>,
    pub(super) owner: Arc<str>,
    pub(super) renewal_cap: Duration,
}

/// The state of one key. It exists while the key is held, is waited for, or has a lock handle.
pub struct Key<S: LeaseStore> {
    pub(super) name: Arc<str>,
    pub(super) gate: Gate,
    pub(super) store: S,
    pub(super) settings: Settings,
    pub(super) counters: Counters,
    pub(super) keys: Keyed<Self>,
}

impl<S: LeaseStore> Drop for Key<S> {
    fn drop(&mut self) {
        self.keys.forget(&self.name);
    }
}

impl<S: LeaseStore> Key<S> {
    /// Counts a release of the lease at the gate. `wanted` is `true` if another process had marked
    /// the lease as wanted.
    pub(super) fn mark_released(self: &Arc<Self>, wanted: bool) {
        self.gate.mark_released(wanted);
        if wanted {
            // Keep the gate and its count of turns until the other process has had time to take the
            // lease. Without this, a client that takes the key again and again would start a new
            // count each time, and this process would never yield.
            let key = Arc::clone(self);
            tokio::spawn(async move {
                sleep(key.settings.retry_interval * 2).await;
                drop(key);
            });
        }
    }
}
