//! Taking the lease of a key.

use std::sync::Arc;

use rocket_tx::db::WaitPolicy;
use rocket_tx::extend::ErrorClass;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::deadline::Deadline;
use super::error::LockError;
use super::gate::Pass;
use super::key::Key;
use super::lease::{Lease, release_with_retries};
use super::stats::Counters;
use super::store::{Attempt, Claim, LeaseStore, Token};

/// Counts a wait as abandoned when it is dropped, unless [`finish`](Self::finish) was called.
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

/// Whether to wait while another holder has the row.
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
        // Counts this wait as abandoned if it times out or fails, or if this future is dropped.
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
        let since = Instant::now();
        match self.gate.try_enter() {
            Some(pass) => {
                self.spawn_acquire(pass, AcquireMode::Try(wait), since)
                    .await
            }
            None => {
                self.counters.contended();
                Ok(None)
            }
        }
    }

    /// Takes the lease in a separate task, which holds the gate's pass: the right to take the lease
    /// in the database.
    ///
    /// The separate task is necessary because dropping a future does not recall a statement that
    /// was already sent. If the caller's future is dropped, the task waits for the reply, releases
    /// the row and then lets the next task through the gate.
    async fn spawn_acquire(
        self: &Arc<Self>,
        pass: Pass,
        mode: AcquireMode,
        since: Instant,
    ) -> Result<Option<Lease<S>>, LockError> {
        let (caller, taken) = oneshot::channel();
        let work = Arc::clone(self).take(pass, mode, since, caller);
        self.store.spawn(work);
        // The task drops `caller` without a result only if the runtime shuts down.
        taken.await.unwrap_or(Ok(None))
    }

    async fn take(
        self: Arc<Self>,
        pass: Pass,
        mode: AcquireMode,
        since: Instant,
        mut caller: oneshot::Sender<Result<Option<Lease<S>>, LockError>>,
    ) {
        let claim = Claim {
            key: Arc::clone(&self.name),
            owner: Arc::clone(&self.settings.owner),
            token: Token::mint(),
            ttl: self.settings.lease_ttl,
        };
        if mode == AcquireMode::Wait && self.gate.should_yield() {
            // Let another process go first: this pause is long enough for it to poll and take the
            // lease.
            tokio::select! {
                () = sleep(self.settings.retry_interval * 2) => {}
                () = caller.closed() => return,
            }
        }
        let wait = match mode {
            AcquireMode::Try(wait) => wait,
            AcquireMode::Wait => WaitPolicy::QUEUE.busy_timeout(self.settings.retry_interval),
        };
        let interval = self.settings.retry_interval;
        let mut pause = interval;
        loop {
            // Subscribe before the attempt, so that a release right after it is not missed.
            let freed = self.store.wait_for_release(&self.name);
            let sent = Instant::now();
            let wanted = match self.store.take(&claim, wait).await {
                Ok(Attempt::Taken {
                    fencing_token,
                    taken_over,
                }) => {
                    self.counters.acquired(since.elapsed(), taken_over);
                    let lease = Lease::new(Arc::clone(&self), claim, fencing_token, sent, pass);
                    // If the caller has gone, `send` returns the lease. It is dropped here, which
                    // releases it.
                    let _ = caller.send(Ok(Some(lease)));
                    return;
                }
                Ok(Attempt::Held { .. }) if mode != AcquireMode::Wait => {
                    self.counters.contended();
                    let _ = caller.send(Ok(None));
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
                    let _ = caller.send(Err(error.into()));
                    drop(pass);
                    if was_sent {
                        // The statement may have been executed although its reply was lost. The
                        // caller has its error already and does not wait for this release.
                        release_with_retries(&self.store, &claim, interval, false).await;
                    }
                    return;
                }
            };
            // A new holder inserts an unmarked row, so the mark is checked after every attempt.
            if !wanted
                && self
                    .store
                    .mark_wanted(&self.name)
                    .await
                    .is_ok_and(|marked| marked)
            {
                // Try again at once: the lease may have been released in the meantime. After that,
                // keep the pauses short: if the holder's process has tasks in its gate, the mark
                // makes it yield after a few turns.
                pause = interval / 8;
                continue;
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            pause = (pause * 2).min(interval);
            tokio::select! {
                () = freed => {}
                () = sleep(jittered) => {}
                () = caller.closed() => return,
            }
        }
    }
}
