//! Leases by key: the gate first, then the row.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::async_lock::{Hold, in_order};
use super::gate::{Gate, Pass};
use super::keyed::Keyed;
use super::lease::Lease;
use super::stats::{Counters, LeaseStats};
use super::store::{Attempt, Claim, LeaseRow, LeaseStore, Token};
use super::{AsyncLock, AsyncLockManager, LockError};
use crate::db::Patience;

/// Durable locks: rows of `aggregate_locks`, behind a gate for the tasks of this process.
///
/// [`SqliteLockManager`](super::SqliteLockManager) and
/// [`PostgresLockManager`](super::PostgresLockManager) are this. A clone is another handle on the
/// same gates.
#[derive(Clone)]
pub struct LeaseLockManager<S: LeaseStore> {
    store: S,
    settings: Settings,
    keys: Keyed<Key<S>>,
    counters: Counters,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) lease_ttl: Duration,
    pub(super) retry_interval: Duration,
    pub(super) max_wait: Option<Duration>,
    pub(super) owner: Arc<str>,
    pub(super) renewal_cap: Duration,
}

/// One key, for as long as somebody holds it, waits for it, or keeps its lock.
pub(super) struct Key<S: LeaseStore> {
    name: Arc<str>,
    pub(super) gate: Gate,
    pub(super) store: S,
    pub(super) settings: Settings,
    counters: Counters,
    /// What [`AsyncLock::lock`] took. It keeps the key alive until it is unlocked.
    held: Mutex<Option<Lease<S>>>,
    keys: Keyed<Key<S>>,
}

impl<S: LeaseStore> Drop for Key<S> {
    fn drop(&mut self) {
        self.keys.forget(&self.name);
    }
}

/// A durable lock on one key.
///
/// A locked key stays locked for this process, whoever drops their handle on it, until somebody
/// unlocks it through any handle. For other processes it is free, too, when it has expired: it is
/// renewed for as long as the manager's renewal cap says.
pub struct LeaseLock<S: LeaseStore>(Arc<Key<S>>);

impl<S: LeaseStore> LeaseLockManager<S> {
    /// Leases in the rows of `store`.
    pub fn over(store: S) -> Self {
        let mut manager = Self {
            store,
            settings: Settings {
                lease_ttl: Duration::from_secs(30),
                retry_interval: Duration::ZERO,
                max_wait: Some(Duration::from_secs(5)),
                owner: format!("pid {}", std::process::id()).into(),
                renewal_cap: Duration::from_secs(600),
            },
            keys: Keyed::default(),
            counters: Counters::default(),
        };
        manager = manager.with_retry_interval(Duration::from_millis(50));
        manager
    }

    /// How long a lease lasts that nobody renews: how long others wait after a crash. Default
    /// 30 s; no less than 30 ms.
    pub fn with_lease_ttl(mut self, ttl: Duration) -> Self {
        self.settings.lease_ttl = ttl.max(Duration::from_millis(30));
        self
    }

    /// How often a waiter asks again, give or take half, and how long one attempt may wait for a
    /// busy row. Default 50 ms; no less than 1 ms.
    pub fn with_retry_interval(mut self, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        self.settings.retry_interval = interval;
        self.store.set_retry_interval(interval);
        self
    }

    /// How long [`acquire`](Self::acquire) and [`AsyncLock::lock`] wait, for gate and row together.
    /// Default 5 s; `None` waits for ever.
    pub fn with_max_wait(mut self, max_wait: Option<Duration>) -> Self {
        self.settings.max_wait = max_wait;
        self
    }

    /// A label for operators. Two processes with the same one are still two holders.
    pub fn with_owner_id(mut self, owner: impl Into<Arc<str>>) -> Self {
        self.settings.owner = owner.into();
        self
    }

    /// How long a lease is renewed at most, from when it was taken. Default 10 min.
    pub fn with_renewal_cap(mut self, cap: Duration) -> Self {
        self.settings.renewal_cap = cap;
        self
    }

    /// Makes the table `aggregate_locks`, or brings it up to date.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn migrate(&self) -> Result<(), crate::db::Error> {
        self.store.migrate().await
    }

    /// Waits for the lease of `key`. For several, see [`hold_all`](AsyncLockManager::hold_all).
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] past the longest wait, [`LockError::Key`] for a key that breaks the
    /// rule, [`LockError::Database`].
    ///
    /// # Cancellation
    ///
    /// A lease that was under way when the future was dropped is released as soon as it is there.
    pub async fn acquire(&self, key: &str) -> Result<Lease<S>, LockError> {
        self.acquire_by(key, self.deadline()).await
    }

    /// Takes the lease of `key` if it is free now.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`], [`LockError::Database`].
    pub async fn try_acquire(&self, key: &str) -> Result<Option<Lease<S>>, LockError> {
        self.try_acquire_with(key, Patience::AtMost(self.settings.retry_interval))
            .await
    }

    /// With [`Patience::Never`] it does not wait for the database either, where a request that
    /// waits for us could have it.
    pub(crate) async fn try_acquire_with(
        &self,
        key: &str,
        patience: Patience,
    ) -> Result<Option<Lease<S>>, LockError> {
        self.key(key)?.try_acquire(patience).await
    }

    /// When a wait that begins now is to end.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.settings.max_wait)
    }

    pub(crate) async fn acquire_by(
        &self,
        key: &str,
        deadline: Deadline,
    ) -> Result<Lease<S>, LockError> {
        self.key(key)?.acquire(deadline).await
    }

    /// Deletes rows that have been expired for longer than the time to live. Never one that is
    /// live, or that somebody is taking over. Says how many.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn sweep_expired(&self) -> Result<u64, LockError> {
        Ok(self.store.sweep(self.settings.lease_ttl).await?)
    }

    /// Everything that is leased in this database, by whatever process.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn leases(&self) -> Result<Vec<LeaseRow>, LockError> {
        Ok(self.store.list().await?)
    }

    /// Frees a lease by its token, for an operator. Whoever holds it finds out at its commit, and
    /// rolls back. `false`: there is no such lease.
    ///
    /// # Errors
    ///
    /// What the database said.
    pub async fn free(&self, token: &str) -> Result<bool, LockError> {
        // None was minted with any, and Postgres takes no NUL.
        if token.chars().any(char::is_control) {
            return Ok(false);
        }
        Ok(self.store.free(&Token::from(token)).await?)
    }

    /// What has come of asking for leases in this process.
    pub fn stats(&self) -> LeaseStats {
        self.counters.read()
    }

    /// How many keys are held, waited for, or kept by somebody in this process.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    fn key(&self, key: &str) -> Result<Arc<Key<S>>, LockError> {
        self.keys.get(key, |name| Key {
            name,
            gate: Gate::default(),
            store: self.store.clone(),
            settings: self.settings.clone(),
            counters: self.counters.clone(),
            held: Mutex::default(),
            keys: self.keys.clone(),
        })
    }
}

impl<S: LeaseStore> AsyncLockManager for LeaseLockManager<S> {
    type Lock = LeaseLock<S>;
    type Hold = Lease<S>;

    fn get_lock(&self, key: &str) -> Result<Arc<LeaseLock<S>>, LockError> {
        Ok(Arc::new(LeaseLock(self.key(key)?)))
    }

    async fn hold_all(&self, keys: &[&str]) -> Result<Vec<Lease<S>>, LockError> {
        let deadline = self.deadline();
        let mut leases = Vec::with_capacity(keys.len());
        for key in in_order(keys) {
            leases.push(self.acquire_by(key, deadline).await?);
        }
        Ok(leases)
    }
}

impl<S: LeaseStore> AsyncLock for LeaseLock<S> {
    async fn lock(&self) -> Result<(), LockError> {
        let deadline = Deadline::after(self.0.settings.max_wait);
        let lease = self.0.acquire(deadline).await?;
        *self.0.held.lock() = Some(lease);
        Ok(())
    }

    async fn try_lock(&self) -> Result<bool, LockError> {
        let patience = Patience::AtMost(self.0.settings.retry_interval);
        let Some(lease) = self.0.try_acquire(patience).await? else {
            return Ok(false);
        };
        *self.0.held.lock() = Some(lease);
        Ok(true)
    }

    async fn unlock(&self) -> Result<(), LockError> {
        let held = self.0.held.lock().take();
        match held {
            Some(lease) => lease.release().await,
            None => Ok(()),
        }
    }
}

/// How long to wait, from entry.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    wait: Duration,
}

impl Deadline {
    fn after(wait: Option<Duration>) -> Self {
        Self {
            // Past what a clock can count is for ever.
            at: wait.and_then(|wait| Instant::now().checked_add(wait)),
            wait: wait.unwrap_or(Duration::MAX),
        }
    }

    pub(crate) async fn bound<T>(
        &self,
        key: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, LockError> {
        match self.at {
            None => Ok(work.await),
            Some(at) => timeout_at(at, work).await.map_err(|_| self.passed(key)),
        }
    }

    fn passed(&self, key: &str) -> LockError {
        LockError::TimedOut {
            key: key.to_owned(),
            waited: self.wait,
        }
    }
}

/// A wait that counts as given up unless it is said to have ended well.
struct Waiting {
    since: Instant,
    counters: Option<Counters>,
}

impl Waiting {
    fn of<S: LeaseStore>(key: &Key<S>) -> Self {
        Self {
            since: Instant::now(),
            counters: Some(key.counters.clone()),
        }
    }

    fn ends(mut self) {
        self.counters = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(counters) = &self.counters {
            counters.given_up();
        }
    }
}

/// Whether to wait for a row that is somebody else's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Insist {
    Once(Patience),
    UntilGivenUp,
}

impl<S: LeaseStore> Key<S> {
    async fn acquire(self: &Arc<Self>, deadline: Deadline) -> Result<Lease<S>, LockError> {
        if deadline.wait.is_zero() {
            let lease = self.try_acquire(Patience::AtMost(self.settings.retry_interval));
            return lease.await?.ok_or_else(|| deadline.passed(&self.name));
        }
        // Counted as given up unless it comes to a lease: also when this future is dropped.
        let waiting = Waiting::of(self);
        let pass = deadline.bound(&self.name, self.gate.enter()).await?;
        let taken = deadline
            .bound(
                &self.name,
                self.in_a_task(pass, Insist::UntilGivenUp, waiting.since),
            )
            .await??;
        waiting.ends();
        taken.ok_or_else(|| LockError::Lost(self.name.to_string()))
    }

    async fn try_acquire(
        self: &Arc<Self>,
        patience: Patience,
    ) -> Result<Option<Lease<S>>, LockError> {
        let asked = Instant::now();
        match self.gate.try_enter() {
            Some(pass) => self.in_a_task(pass, Insist::Once(patience), asked).await,
            None => {
                self.counters.contended();
                Ok(None)
            }
        }
    }

    /// A statement that has been sent cannot be taken back by dropping its future. So the database
    /// part runs in a task of its own, which keeps the gate; if nobody waits for what it brings,
    /// it releases the row, then the gate.
    async fn in_a_task(
        self: &Arc<Self>,
        pass: Pass,
        insist: Insist,
        asked: Instant,
    ) -> Result<Option<Lease<S>>, LockError> {
        let (answer, taken) = oneshot::channel();
        let work = Arc::clone(self).take(pass, insist, asked, answer);
        self.store.spawn(work);
        // Without an answer the runtime is ending.
        taken.await.unwrap_or(Ok(None))
    }

    async fn take(
        self: Arc<Self>,
        pass: Pass,
        insist: Insist,
        asked: Instant,
        mut answer: oneshot::Sender<Result<Option<Lease<S>>, LockError>>,
    ) {
        let claim = Claim {
            key: Arc::clone(&self.name),
            owner: Arc::clone(&self.settings.owner),
            token: Token::mint(),
            ttl: self.settings.lease_ttl,
        };
        if insist == Insist::UntilGivenUp && self.gate.should_yield() {
            // Long enough for a process that polls to come by.
            tokio::select! {
                () = sleep_until(Instant::now() + self.settings.retry_interval * 2) => {}
                () = answer.closed() => return,
            }
        }
        let patience = match insist {
            Insist::Once(patience) => patience,
            Insist::UntilGivenUp => Patience::AtMost(self.settings.retry_interval),
        };
        let interval = self.settings.retry_interval;
        let mut pause = interval;
        loop {
            // Before the attempt: a release that comes right after it must not be missed.
            let freed = self.store.freed(&self.name);
            let wanted = match self.store.take(&claim, patience).await {
                Ok(Attempt::Taken {
                    fencing_token,
                    taken_over,
                }) => {
                    self.counters.acquired(asked.elapsed(), taken_over);
                    let lease = Lease::new(Arc::clone(&self), claim, fencing_token, pass);
                    // Given back by a caller that is gone, it is dropped here, and so released.
                    let _ = answer.send(Ok(Some(lease)));
                    return;
                }
                Ok(Attempt::Held { .. }) if insist != Insist::UntilGivenUp => {
                    self.counters.contended();
                    let _ = answer.send(Ok(None));
                    return;
                }
                Ok(Attempt::Held { wanted }) => {
                    self.counters.contended();
                    wanted
                }
                Err(error) => {
                    // Its answer was lost; it may have been obeyed.
                    let _ = self.store.release(&claim.key, &claim.token).await;
                    let _ = answer.send(Err(error.into()));
                    return;
                }
            };
            // Each new holder's row says anew whether it is wanted.
            if !wanted && self.store.want(&self.name).await.is_ok_and(|marked| marked) {
                // It may have been released just before it was marked; and where tasks of the
                // other process queue, it gives way soon.
                pause = interval / 8;
                continue;
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            pause = (pause * 2).min(interval);
            tokio::select! {
                () = freed => {}
                () = sleep_until(Instant::now() + jittered) => {}
                () = answer.closed() => return,
            }
        }
    }
}
