//! The renewal of leases while they are held.
//!
//! Most leases are released long before they need a renewal. So a lease does not have a task from
//! the start: all leases of a manager are in one list, by the time of their first renewal. One task
//! waits for the first of these times, and starts a task for each lease that is still held then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::store::{Claim, LeaseStore};

/// Renews a lease whenever a third of its time to live has passed. Dropping this value stops the
/// renewal.
pub(super) struct Renewal<S: LeaseStore> {
    state: Arc<RenewalState<S>>,
    /// The place in the list of first renewals.
    place: Option<Place>,
}

/// Shared by a lease and the task that renews it.
struct RenewalState<S: LeaseStore> {
    renewals: Renewals<S>,
    store: S,
    /// How long the lease is renewed at most.
    cap: Duration,
    claim: Claim,
    since: Instant,
    stopped: CancellationToken,
    /// Locked while a statement is under way.
    under_way: Mutex<()>,
    /// A renewal detected that the row is not ours any more.
    lost: AtomicBool,
    /// The time until which no other process can have taken the lease over, by the clock of this
    /// process. It is one time to live after the last successful statement was sent.
    ours_until: parking_lot::Mutex<Instant>,
}

impl<S: LeaseStore> Renewal<S> {
    pub(super) fn start(
        renewals: &Renewals<S>,
        store: S,
        cap: Duration,
        claim: Claim,
        ours_until: Instant,
    ) -> Self {
        let since = Instant::now();
        let state = Arc::new(RenewalState {
            renewals: renewals.clone(),
            store,
            cap,
            claim,
            since,
            stopped: CancellationToken::new(),
            under_way: Mutex::default(),
            lost: AtomicBool::new(false),
            ours_until: parking_lot::Mutex::new(ours_until),
        });
        let place = if cap.is_zero() {
            state.log_cap();
            None
        } else {
            Some(renewals.insert(since + state.claim.ttl / 3, &state))
        };
        Self { state, place }
    }

    /// Starts again after [`stop`](Self::stop).
    pub(super) fn restart(&mut self) {
        let state = &self.state;
        let ours_until = *state.ours_until.lock();
        let (store, claim) = (state.store.clone(), state.claim.clone());
        *self = Self::start(&state.renewals, store, state.cap, claim, ours_until);
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.state.claim
    }

    /// Returns `true` if a renewal detected that the row is not ours any more.
    pub(super) fn has_lost(&self) -> bool {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Returns `true` if another process cannot have taken the lease over yet.
    pub(super) fn is_surely_ours(&self) -> bool {
        Instant::now() < *self.state.ours_until.lock()
    }

    /// Stops the renewal. When this returns, no renewal is under way and none will start.
    pub(super) async fn stop(&mut self) {
        if self.leave_list() {
            return;
        }
        self.state.stopped.cancel();
        drop(self.state.under_way.lock().await);
    }

    /// Returns `true` if the first renewal had not started, and will not.
    fn leave_list(&mut self) -> bool {
        let Some(place) = self.place.take() else {
            return false;
        };
        self.state.renewals.remove(place)
    }
}

impl<S: LeaseStore> Drop for Renewal<S> {
    fn drop(&mut self) {
        if !self.leave_list() {
            self.state.stopped.cancel();
        }
    }
}

impl<S: LeaseStore> RenewalState<S> {
    /// Renews the lease until the renewal is stopped, the lease is lost, or the cap has passed. The
    /// lease counts as lost only if its row is gone or has another token. Errors are retried.
    async fn renew(self: Arc<Self>) {
        let claim = &self.claim;
        let interval = claim.ttl / 3;
        loop {
            let under_way = self.under_way.lock().await;
            if self.stopped.is_cancelled() {
                return;
            }
            let sent_at = Instant::now();
            let pause = match self.store.renew(claim, &self.stopped).await {
                Ok(true) => {
                    *self.ours_until.lock() = sent_at + claim.ttl;
                    interval
                }
                Ok(false) => {
                    tracing::warn!(
                        key = %claim.key,
                        owner = %claim.owner,
                        "a lease was lost: it was taken over, swept or freed"
                    );
                    self.lost.store(true, Ordering::SeqCst);
                    return;
                }
                Err(error) => {
                    tracing::debug!(
                        key = %claim.key,
                        %error,
                        "could not renew a lease; trying again"
                    );
                    interval / 8
                }
            };
            drop(under_way);
            if self.since.elapsed() >= self.cap {
                self.log_cap();
                return;
            }
            tokio::select! {
                () = self.stopped.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    fn log_cap(&self) {
        tracing::warn!(
            key = %self.claim.key,
            held = ?self.since.elapsed(),
            "a lease has reached the renewal cap and is not renewed any more"
        );
    }
}

/// The time of a first renewal, and a number that makes it unique.
type Place = (Instant, u64);

/// The leases of a manager whose first renewal has not started. A clone is another handle on the
/// same list.
pub(super) struct Renewals<S: LeaseStore>(Arc<Inner<S>>);

struct Inner<S: LeaseStore> {
    list: parking_lot::Mutex<List<S>>,
    /// Wakes the task for a lease that is due before its next wake-up.
    earlier: Notify,
}

struct List<S: LeaseStore> {
    first_renewals: BTreeMap<Place, Arc<RenewalState<S>>>,
    last: u64,
    /// When the task that waits for the first renewal wakes up; `None` if there is no such task.
    wakes_at: Option<Instant>,
}

impl<S: LeaseStore> Clone for Renewals<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: LeaseStore> Default for Renewals<S> {
    fn default() -> Self {
        Self(Arc::new(Inner {
            list: parking_lot::Mutex::new(List {
                first_renewals: BTreeMap::new(),
                last: 0,
                wakes_at: None,
            }),
            earlier: Notify::new(),
        }))
    }
}

impl<S: LeaseStore> Renewals<S> {
    fn insert(&self, at: Instant, state: &Arc<RenewalState<S>>) -> Place {
        let mut list = self.0.list.lock();
        list.last += 1;
        let place = (at, list.last);
        list.first_renewals.insert(place, Arc::clone(state));
        match list.wakes_at {
            None => {
                list.wakes_at = Some(at);
                let renewals = self.clone();
                let waker = Waker {
                    renewals,
                    has_ended: false,
                };
                tokio::spawn(waker.run(at));
            }
            Some(wakes_at) if at < wakes_at => self.0.earlier.notify_one(),
            Some(_) => {}
        }
        place
    }

    /// Returns `false` if the renewal has started.
    fn remove(&self, place: Place) -> bool {
        let removed = self.0.list.lock().first_renewals.remove(&place);
        // The state is dropped outside the mutex: it may have the last reference to the list.
        removed.is_some()
    }
}

/// The task that waits for the next first renewal. If it is dropped before its end, because its
/// runtime ends, the next lease starts another one.
struct Waker<S: LeaseStore> {
    renewals: Renewals<S>,
    has_ended: bool,
}

impl<S: LeaseStore> Drop for Waker<S> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.renewals.0.list.lock().wakes_at = None;
        }
    }
}

impl<S: LeaseStore> Waker<S> {
    /// Runs until no lease is in the list at a time for which the task has waited. A lease that is
    /// released sooner costs no task, also if there is no other lease.
    async fn run(mut self, mut wakes_at: Instant) {
        let Renewals(inner) = self.renewals.clone();
        loop {
            tokio::select! {
                () = sleep_until(wakes_at) => {}
                () = inner.earlier.notified() => {}
            }
            let (due, next) = inner.list.lock().due(Instant::now());
            for state in due {
                tokio::spawn(state.renew());
            }
            match next {
                Some(next) => wakes_at = next,
                None => {
                    self.has_ended = true;
                    return;
                }
            }
        }
    }
}

impl<S: LeaseStore> List<S> {
    /// Takes out the leases whose first renewal is due, and sets the next time to wake up.
    fn due(&mut self, now: Instant) -> (Vec<Arc<RenewalState<S>>>, Option<Instant>) {
        let mut due = Vec::new();
        while let Some(first) = self.first_renewals.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        let next = self.first_renewals.first_key_value();
        self.wakes_at = next.map(|((at, _), _)| *at);
        (due, self.wakes_at)
    }
}
