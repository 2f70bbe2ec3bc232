//! The state of one key, shared by the tasks of this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::sleep;

use super::gate::{Gate, Grace, Pass};
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

/// A task in the queue of a gate.
struct Queued<'a, S: LeaseStore> {
    /// `None` once the task has its turn.
    key: Option<&'a Arc<Key<S>>>,
    /// Runs what is left to do, whichever thread drops this value.
    runtime: Handle,
}

impl<S: LeaseStore> Drop for Queued<'_, S> {
    fn drop(&mut self) {
        if let Some(key) = self.key
            && key.gate.is_left(Instant::now())
        {
            let _inside = self.runtime.enter();
            key.keep_gate();
            key.wake_others();
        }
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
    /// Waits for a turn at the gate.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves the queue. If no other task is in it, and the last release has not
    /// woken the other processes that wait for the lease, they are woken now.
    pub(super) async fn enter(self: &Arc<Self>) -> Pass {
        let mut queued = Queued {
            key: Some(self),
            runtime: Handle::current(),
        };
        let pass = self.gate.enter().await;
        queued.key = None;
        pass
    }

    /// Counts a release of the lease at the gate. `wanted` is `true` if another process had marked
    /// the lease as wanted, and `wakes` if such a process is woken. Returns `true` if this process
    /// gives way.
    pub(super) fn mark_released(self: &Arc<Self>, wanted: bool, wakes: bool) -> bool {
        let gives_way = self.gate.mark_released(wanted, wakes, Instant::now());
        if gives_way {
            self.keep_gate();
        }
        gives_way
    }

    /// Keeps the gate until another process has had time to take the lease. Without this, a client
    /// that takes the key again and again would make a new gate each time, and would be faster than
    /// the other process each time.
    fn keep_gate(self: &Arc<Self>) {
        let key = Arc::clone(self);
        tokio::spawn(async move {
            sleep(key.gate.grace()).await;
            drop(key);
        });
    }

    /// Wakes the waiters in other processes, in a separate task.
    pub(super) fn wake_others(self: &Arc<Self>) {
        let key = Arc::clone(self);
        self.store.spawn(async move {
            if let Err(error) = key.store.notify_waiters(&key.name).await {
                tracing::debug!(
                    key = %key.name,
                    %error,
                    "could not notify the waiters for a lease; they poll"
                );
            }
        });
    }
}
