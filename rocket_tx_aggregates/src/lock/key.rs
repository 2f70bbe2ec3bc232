//! The state of one key, shared by the tasks of this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::gate::{Gate, Grace};
use super::keyed::Keyed;
use super::renewal::Renewals;
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

impl Settings {
    /// Returns how long another process has to take a lease after this process gave way.
    /// `wakes`: waiters in other processes can be woken. Otherwise they need the time to poll.
    pub(super) fn grace(&self, wakes: bool) -> Grace {
        /// Waking another process takes about a millisecond on an idle machine.
        const FIRST: Duration = Duration::from_millis(5);

        let longest = self.retry_interval * 2;
        let first = if wakes { FIRST } else { longest };
        Grace { first, longest }
    }
}

/// The state of one key. It exists while the key is held, is waited for, or has a lock handle.
pub struct Key<S: LeaseStore> {
    pub(super) name: Arc<str>,
    pub(super) gate: Gate,
    pub(super) store: S,
    pub(super) settings: Settings,
    pub(super) counters: Counters,
    pub(super) renewals: Renewals<S>,
    pub(super) keys: Keyed<Self>,
}

impl<S: LeaseStore> Drop for Key<S> {
    fn drop(&mut self) {
        self.keys.forget(&self.name);
    }
}

impl<S: LeaseStore> Key<S> {
    /// Counts a release of the lease at the gate. `wanted` is `true` if another process had marked
    /// the lease as wanted, and `wakes` if such a process is woken. Returns `true` if this process
    /// gives way.
    pub(super) fn mark_released(self: &Arc<Self>, wanted: bool, wakes: bool) -> bool {
        let gives_way = self.gate.mark_released(wanted, wakes, Instant::now());
        if gives_way {
            // Keep the gate until the other process has had time to take the lease. Without this,
            // a client that takes the key again and again would make a new gate each time, and
            // would be faster than the other process each time.
            let key = Arc::clone(self);
            tokio::spawn(async move {
                sleep(key.gate.grace()).await;
                drop(key);
            });
        }
        gives_way
    }
}
