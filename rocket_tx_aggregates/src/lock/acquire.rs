//! Taking the lease of a key.

use std::sync::Arc;
use std::time::Duration;

use rocket::futures::future::{BoxFuture, FutureExt};
use rocket_tx::db::WaitPolicy;
use rocket_tx::extend::ErrorClass;
use tokio::time::{Instant, timeout_at};

use super::deadline::Deadline;
use super::error::LockError;
use super::gate::Pass;
use super::key::Key;
use super::lease::{Lease, release_with_retries};
use super::run_to_end::RunToEnd;
use super::stats::Counters;
use super::store::{Attempt, Claim, LeaseStore, Look, Token};

/// Counts a wait as abandoned when it is dropped, unless [`finish`](Self::finish) was called.
pub(super) struct WaitRecord {
    pub(super) since: Instant,
    counters: Option<Counters>,
}

impl WaitRecord {
    pub(super) fn of<S: LeaseStore>(key: &Key<S>) -> Self {
        Self {
            since: Instant::now(),
            counters: Some(key.counters.clone()),
        }
    }

    pub(super) fn finish(mut self) {
        self.counters = None;
    }
}

impl Drop for WaitRecord {
    fn drop(&mut self) {
        if let Some(counters) = &self.counters {
            counters.given_up();
        }
    }
}

impl<S: LeaseStore> Key<S> {
    pub(super) async fn acquire(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<Lease<S>, LockError> {
        if deadline.is_immediate() {
            let lease =
                self.try_acquire(WaitPolicy::QUEUE.busy_timeout(self.settings.retry_interval));
            return lease
                .await?
                .ok_or_else(|| deadline.timeout_error(&self.name));
        }
        // Counts this wait as abandoned if it times out or fails, or if this future is dropped.
        let waiting = WaitRecord::of(self);
        let pass = deadline.timeout(&self.name, self.enter()).await?;
        let turn = Turn::new(self, pass, waiting.since);
        let lease = deadline.timeout(&self.name, turn.wait()).await??;
        waiting.finish();
        Ok(lease)
    }

    pub(super) async fn try_acquire(
        self: &Arc<Self>,
        wait: WaitPolicy,
    ) -> Result<Option<Lease<S>>, LockError> {
        let since = Instant::now();
        let Some(pass) = self.gate.try_enter() else {
            self.counters.contended();
            return Ok(None);
        };
        match Turn::new(self, pass, since).take(wait, false).await? {
            Tried::Taken(lease) => Ok(Some(lease)),
            Tried::Held { .. } => Ok(None),
        }
    }
}

/// The turn of a task at the gate: the right to take the lease in the database.
pub(super) struct Turn<S: LeaseStore> {
    pub(super) key: Arc<Key<S>>,
    pass: Pass,
    pub(super) claim: Claim,
    since: Instant,
}

/// The result of one attempt.
pub(super) enum Tried<S: LeaseStore> {
    Taken(Lease<S>),
    /// Another holder has the row, or the row is busy. `wanted`: the row is marked as wanted.
    Held {
        turn: Turn<S>,
        wanted: bool,
    },
}

/// The pause before the next attempt to mark a row that was busy.
const UNMARKED: Duration = Duration::from_millis(2);

impl<S: LeaseStore> Turn<S> {
    pub(super) fn new(key: &Arc<Key<S>>, pass: Pass, since: Instant) -> Self {
        let claim = Claim {
            key: Arc::clone(&key.name),
            owner: Arc::clone(&key.settings.owner),
            token: Token::mint(),
            ttl: key.settings.lease_ttl,
            wanted: false,
        };
        Self {
            key: Arc::clone(key),
            pass,
            claim,
            since,
        }
    }

    /// Waits for the lease.
    pub(super) async fn wait(mut self) -> Result<Lease<S>, LockError> {
        let interval = self.key.settings.retry_interval;
        let wait = WaitPolicy::QUEUE.busy_timeout(interval);
        let mut pause = interval;
        let mut yields_until = self.key.gate.yields_until(std::time::Instant::now());
        let (mut look, mut was_woken) = (Look::Free, false);
        if yields_until.is_some() {
            // The row will be there when the other process has taken the lease.
            look = Look::Held { wanted: true };
        }
        // Subscribe before each attempt, so that a release right after it is not missed.
        let subscribe = |key: &Key<S>| -> BoxFuture<'static, ()> {
            key.store.wait_for_release(&key.name).boxed()
        };
        let mut freed = subscribe(&self.key);
        loop {
            if look == Look::Free {
                // The process that woke this task has given way, and probably waits again. It
                // need not mark the row.
                self.claim.wanted = was_woken || self.key.gate.is_wanted();
                match self.take(wait, true).await? {
                    Tried::Taken(lease) => return Ok(lease),
                    Tried::Held { turn, wanted } => (self, look) = (turn, Look::Held { wanted }),
                }
            }
            if look == (Look::Held { wanted: false }) {
                // The row was busy and could not be marked, so no process will wake this task.
                pause = UNMARKED.min(interval);
            }
            let wake_up = match yields_until {
                Some(until) => until.into(),
                None => Instant::now() + pause.mul_f64(0.5 + fastrand::f64()),
            };
            pause = (pause * 2).min(interval);
            was_woken = timeout_at(wake_up, &mut freed).await.is_ok();
            look = if was_woken {
                freed = subscribe(&self.key);
                Look::Free
            } else {
                self.look().await?
            };
            if yields_until.take().is_some() {
                let was_taken = was_woken || look != Look::Free;
                self.key.gate.mark_yielded(was_taken);
            }
        }
    }

    /// Tries once to take the lease.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the attempt continues in a separate task. If it takes the lease,
    /// that task releases the lease and then lets the next task through the gate.
    pub(super) async fn take(self, wait: WaitPolicy, marks: bool) -> Result<Tried<S>, LockError> {
        RunToEnd::new(self.key.store.clone(), self.try_take(wait, marks)).await
    }

    async fn try_take(self, wait: WaitPolicy, marks: bool) -> Result<Tried<S>, LockError> {
        let sent_at = Instant::now();
        match self.key.store.take(&self.claim, wait, marks).await {
            Ok(Attempt::Taken {
                fencing_token,
                taken_over,
            }) => Ok(Tried::Taken(self.taken(fencing_token, taken_over, sent_at))),
            Ok(Attempt::Held { wanted }) => {
                self.key.counters.contended();
                Ok(Tried::Held { turn: self, wanted })
            }
            Err(error) => {
                self.release_if_sent(&error);
                Err(error.into())
            }
        }
    }

    /// Returns the lease that a statement has taken, which was sent at `sent_at`.
    pub(super) fn taken(self, fencing_token: i64, taken_over: bool, sent_at: Instant) -> Lease<S> {
        let Self {
            key,
            pass,
            claim,
            since,
        } = self;
        key.counters.acquired(since.elapsed(), taken_over);
        Lease::new(key, claim, fencing_token, sent_at, pass)
    }

    /// Releases the row in a separate task if the statement that failed may have been executed
    /// although its reply was lost. The caller receives its error at once.
    pub(super) fn release_if_sent(self, error: &sqlx::Error) {
        if matches!(
            ErrorClass::of(error),
            ErrorClass::Unreachable | ErrorClass::Busy
        ) {
            return;
        }
        let Self { key, claim, .. } = self;
        let store = key.store.clone();
        store.spawn(async move {
            let pause = key.settings.retry_interval;
            release_with_retries(&key.store, &claim, pause, false, true).await;
        });
    }

    /// Looks at the row of another holder, and marks it as wanted.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the statements continue in a separate task.
    async fn look(&self) -> Result<Look, LockError> {
        let (key, claim) = (Arc::clone(&self.key), self.claim.clone());
        let look = async move { key.store.want(&claim).await };
        Ok(RunToEnd::new(self.key.store.clone(), look).await?)
    }
}
