//! How the lease of a key is taken.

use std::sync::Arc;

use rocket_tx::db::WaitPolicy;
use rocket_tx::extend::ErrorClass;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::deadline::Deadline;
use super::error::LockError;
use super::gate::Pass;
use super::key::Key;
use super::lease::{Lease, release_patiently};
use super::stats::Counters;
use super::store::{Attempt, Claim, LeaseStore, Token};

/// Counts a wait as given up, unless it was finished.
struct WaitRecord {
    since: Instant,
    counters: Option<Counters>,
}

impl WaitRecord {
    fn of<S: LeaseStore>(key: &Key<S>) -> Self {
        Self {
            since: Instant::now(),
            counters: Some(key.counters.clone()),
        }
    }

    fn finish(mut self) {
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

/// Whether to wait for a row of another holder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AcquireMode {
    Try(WaitPolicy),
    Wait,
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
        // Counted as given up unless it comes to a lease: also when this future is dropped.
        let waiting = WaitRecord::of(self);
        let pass = deadline.timeout(&self.name, self.gate.enter()).await?;
        let taken = deadline
            .timeout(
                &self.name,
                self.spawn_acquire(pass, AcquireMode::Wait, waiting.since),
            )
            .await??;
        waiting.finish();
        taken.ok_or_else(|| LockError::ShuttingDown(self.name.to_string()))
    }

    pub(super) async fn try_acquire(
        self: &Arc<Self>,
        wait: WaitPolicy,
    ) -> Result<Option<Lease<S>>, LockError> {
        let asked = Instant::now();
        match self.gate.try_enter() {
            Some(pass) => {
                self.spawn_acquire(pass, AcquireMode::Try(wait), asked)
                    .await
            }
            None => {
                self.counters.contended();
                Ok(None)
            }
        }
    }

    /// Dropping its future does not take back a statement that has been sent. So the database part
    /// runs in a task of its own, which keeps the gate. If the caller has gone, the task releases
    /// the row, then the gate.
    async fn spawn_acquire(
        self: &Arc<Self>,
        pass: Pass,
        mode: AcquireMode,
        asked: Instant,
    ) -> Result<Option<Lease<S>>, LockError> {
        let (answer, taken) = oneshot::channel();
        let work = Arc::clone(self).take(pass, mode, asked, answer);
        self.store.spawn(work);
        // Without an answer the runtime is ending.
        taken.await.unwrap_or(Ok(None))
    }

    async fn take(
        self: Arc<Self>,
        pass: Pass,
        mode: AcquireMode,
        asked: Instant,
        mut answer: oneshot::Sender<Result<Option<Lease<S>>, LockError>>,
    ) {
        let claim = Claim {
            key: Arc::clone(&self.name),
            owner: Arc::clone(&self.settings.owner),
            token: Token::mint(),
            ttl: self.settings.lease_ttl,
        };
        if mode == AcquireMode::Wait && self.gate.should_yield() {
            // Long enough for a process that polls to come by.
            tokio::select! {
                () = sleep(self.settings.retry_interval * 2) => {}
                () = answer.closed() => return,
            }
        }
        let wait = match mode {
            AcquireMode::Try(wait) => wait,
            AcquireMode::Wait => WaitPolicy::QUEUE.busy_timeout(self.settings.retry_interval),
        };
        let interval = self.settings.retry_interval;
        let mut pause = interval;
        loop {
            // Before the attempt: a release that comes right after it must not be missed.
            let freed = self.store.wait_for_release(&self.name);
            let sent = Instant::now();
            let wanted = match self.store.take(&claim, wait).await {
                Ok(Attempt::Taken {
                    fencing_token,
                    taken_over,
                }) => {
                    self.counters.acquired(asked.elapsed(), taken_over);
                    let lease = Lease::new(Arc::clone(&self), claim, fencing_token, sent, pass);
                    // Given back by a caller that is gone, it is dropped here, and so released.
                    let _ = answer.send(Ok(Some(lease)));
                    return;
                }
                Ok(Attempt::Held { .. }) if mode != AcquireMode::Wait => {
                    self.counters.contended();
                    let _ = answer.send(Ok(None));
                    return;
                }
                Ok(Attempt::Held { wanted }) => {
                    self.counters.contended();
                    wanted
                }
                Err(error) => {
                    let was_sent = !matches!(
                        ErrorClass::of(&error),
                        ErrorClass::Unreachable | ErrorClass::Busy
                    );
                    let _ = answer.send(Err(error.into()));
                    drop(pass);
                    if was_sent {
                        // It may have been executed, and its response lost. No caller waits for
                        // this.
                        release_patiently(&self.store, &claim, interval, false).await;
                    }
                    return;
                }
            };
            // Each new holder's row is marked anew.
            if !wanted
                && self
                    .store
                    .mark_wanted(&self.name)
                    .await
                    .is_ok_and(|marked| marked)
            {
                // It may have been released just before it was marked; and where tasks of the
                // other process queue, it gives way soon.
                pause = interval / 8;
                continue;
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            pause = (pause * 2).min(interval);
            tokio::select! {
                () = freed => {}
                () = sleep(jittered) => {}
                () = answer.closed() => return,
            }
        }
    }
}
