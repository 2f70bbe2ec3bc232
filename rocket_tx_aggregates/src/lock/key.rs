//! One key: its gate, and where its lease is.

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

/// One key, while it is held, waited for, or has a lock handle.
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
    /// The lease was released, and another process had said that it wants it, or not.
    pub(super) fn mark_released(self: &Arc<Self>, wanted: bool) {
        self.gate.mark_released(wanted);
        if wanted {
            // Keeps what the gate knows of turns for as long as the other process needs to come by:
            // a client that asks again and again would never give way otherwise.
            let key = Arc::clone(self);
            tokio::spawn(async move {
                sleep(key.settings.retry_interval * 2).await;
                drop(key);
            });
        }
    }
}
