//! Leases by key. A task enters the gate first, and then takes the row.

use std::sync::Arc;
use std::time::Duration;

use rocket_tx::db::WaitPolicy;

use super::acquire_all::{acquire_all, try_acquire_all};
use super::async_lock::{AsyncLockManager, in_order};
use super::deadline::Deadline;
use super::error::LockError;
use super::gate::Gate;
use super::key::{Key, Settings};
use super::keyed::Keyed;
use super::lease::Lease;
use super::manual::{Lockable, ManualLock, Slot};
use super::renewal::Renewals;
use super::stats::{Counters, LeaseStats};
use super::store::{LeaseRow, LeaseStore, Token};

/// Makes durable locks. Each lock is a row of `aggregate_locks`, with a gate in front of it: the
/// queue of the tasks of this process.
///
/// [`SqliteLockManager`](super::SqliteLockManager) and
/// [`PostgresLockManager`](super::PostgresLockManager) are aliases of this type. A clone is another
/// handle on the same gates.
#[derive(Clone)]
pub struct LeaseLockManager<S: LeaseStore> {
    store: S,
    settings: Settings,
    keys: Keyed<Key<S>>,
    slots: Keyed<Slot<Key<S>>>,
    counters: Counters,
    renewals: Renewals<S>,
}

/// The shortest time to live of a lease. With a shorter one, a pause of the process that is quite
/// usual would cost it its leases.
pub(crate) const LEAST_TTL: Duration = Duration::from_millis(100);

/// A durable lock on one key.
///
/// A locked key is renewed until it is unlocked, but no longer than the manager's renewal cap.
/// After that the lease expires, and other processes can take the key.
pub type LeaseLock<S> = ManualLock<Key<S>>;

impl<S: LeaseStore> LeaseLockManager<S> {
    /// Makes a manager whose leases are the rows of `store`.
    pub fn over(store: S) -> Self {
        let manager = Self {
            store,
            settings: Settings {
                lease_ttl: Duration::from_secs(30),
                retry_interval: Duration::ZERO,
                max_wait: Some(Duration::from_secs(5)),
                owner: format!("pid {}", std::process::id()).into(),
                renewal_cap: Duration::from_secs(600),
            },
            keys: Keyed::default(),
            slots: Keyed::default(),
            counters: Counters::default(),
            renewals: Renewals::default(),
        };
        // Passes the interval to the store as well.
        manager.with_retry_interval(Duration::from_millis(50))
    }

    /// Sets how long a lease lasts without renewal. After a crash of the holder, other holders wait
    /// for the rest of this time. Default 30 s, minimum 100 ms.
    pub fn with_lease_ttl(mut self, ttl: Duration) -> Self {
        self.settings.lease_ttl = ttl.max(LEAST_TTL);
        self
    }

    /// Sets the polling interval for a contended lease (±50 % jitter). It is also the longest time
    /// that one attempt waits for a busy row. Default 50 ms, minimum 1 ms.
    pub fn with_retry_interval(mut self, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        self.settings.retry_interval = interval;
        self.store.set_retry_interval(interval);
        self
    }

    /// Sets how long [`acquire`](Self::acquire) and [`AsyncLock::lock`](super::AsyncLock::lock)
    /// wait for the gate and the row together. Default 5 s; `None` sets no limit.
    pub fn with_max_wait(mut self, max_wait: Option<Duration>) -> Self {
        self.settings.max_wait = max_wait;
        self
    }

    /// Sets a label for operators. Two processes with the same label are still two holders.
    pub fn with_owner_id(mut self, owner: impl Into<Arc<str>>) -> Self {
        self.settings.owner = owner.into();
        self
    }

    /// Sets how long a lease is renewed at most, counted from its acquisition. Default 10 min.
    pub fn with_renewal_cap(mut self, cap: Duration) -> Self {
        self.settings.renewal_cap = cap;
        self
    }

    /// Sets the most connections for lease statements on Postgres. They are opened when they are
    /// needed. Default 4, minimum 1. On SQLite this has no effect.
    pub fn with_max_connections(mut self, number: u32) -> Self {
        self.store.set_max_connections(number.max(1));
        self
    }

    /// Creates the table `aggregate_locks`, or brings it up to date.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    pub async fn migrate(&self) -> Result<(), rocket_tx::db::PoolError> {
        self.store.migrate().await
    }

    /// Waits for the lease of `key`. For several keys, see
    /// [`hold_all`](AsyncLockManager::hold_all).
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] after the longest wait, [`LockError::Key`] for an invalid key,
    /// [`LockError::Database`].
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, a statement that was already sent still runs. If it takes the
    /// lease, the lease is released at once.
    pub async fn acquire(&self, key: &str) -> Result<Lease<S>, LockError> {
        self.key(key)?.acquire(self.deadline()).await
    }

    /// Takes the lease of `key` if it is free now. Returns `None` otherwise.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`], [`LockError::Database`].
    pub async fn try_acquire(&self, key: &str) -> Result<Option<Lease<S>>, LockError> {
        let wait = WaitPolicy::QUEUE.busy_timeout(self.settings.retry_interval);
        self.key(key)?.try_acquire(wait).await
    }

    /// Takes the leases of `keys` if all of them are free now. The keys are sorted and have no
    /// duplicates. This does not wait for a connection either, because all connections may be held
    /// by requests that wait for the caller.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if one of them is not free.
    pub(crate) async fn try_acquire_all(&self, keys: &[&str]) -> Result<Vec<Lease<S>>, LockError> {
        try_acquire_all(&self.all(keys)?, WaitPolicy::FAIL_FAST)
            .await?
            .map_err(|key| LockError::Held(key.to_string()))
    }

    /// Waits for the leases of `keys`, which are sorted and have no duplicates.
    pub(crate) async fn acquire_all_by(
        &self,
        keys: &[&str],
        deadline: Deadline,
    ) -> Result<Vec<Lease<S>>, LockError> {
        acquire_all(&self.all(keys)?, deadline).await
    }

    /// Returns the deadline of a wait that begins now.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.settings.max_wait)
    }

    /// Returns the polling interval for a contended lease.
    pub(crate) fn retry_interval(&self) -> Duration {
        self.settings.retry_interval
    }

    /// Deletes rows that expired more than one time to live ago, and returns their number. A row
    /// that is live or is being taken over is never deleted.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    pub async fn sweep_expired(&self) -> Result<u64, LockError> {
        Ok(self.store.sweep(self.settings.lease_ttl).await?)
    }

    /// Returns all leases in this database, of all processes.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    pub async fn leases(&self) -> Result<Vec<LeaseRow>, LockError> {
        Ok(self.store.list().await?)
    }

    /// Frees a lease by its token, for an operator. The holder detects this at its commit, and
    /// rolls back. Returns `false` if there is no lease with this token.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    pub async fn free(&self, token: &str) -> Result<bool, LockError> {
        // No token contains a control character, and Postgres does not accept NUL in a text.
        if token.chars().any(char::is_control) {
            return Ok(false);
        }
        Ok(self.store.free(&Token::from(token)).await?)
    }

    /// Returns the counters of this manager.
    pub fn stats(&self) -> LeaseStats {
        self.counters.read()
    }

    /// Returns how many keys are held, are waited for, or have a lock handle in this process.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    fn all(&self, keys: &[&str]) -> Result<Vec<Arc<Key<S>>>, LockError> {
        keys.iter().map(|key| self.key(key)).collect()
    }

    fn key(&self, key: &str) -> Result<Arc<Key<S>>, LockError> {
        self.keys.get(key, |name| Key {
            name,
            gate: Gate::new(self.settings.grace(self.store.wakes_waiters())),
            store: self.store.clone(),
            settings: self.settings.clone(),
            counters: self.counters.clone(),
            renewals: self.renewals.clone(),
            keys: self.keys.clone(),
        })
    }
}

impl<S: LeaseStore> AsyncLockManager for LeaseLockManager<S> {
    type Lock = LeaseLock<S>;
    type Hold = Lease<S>;

    fn get_lock(&self, key: &str) -> Result<Arc<LeaseLock<S>>, LockError> {
        ManualLock::new(&self.slots, self.key(key)?, self.settings.max_wait)
    }

    async fn hold_all(&self, keys: &[&str]) -> Result<Vec<Lease<S>>, LockError> {
        self.acquire_all_by(&in_order(keys), self.deadline()).await
    }
}

impl<S: LeaseStore> Lockable for Key<S> {
    type Hold = Lease<S>;

    fn name(&self) -> &str {
        &self.name
    }

    async fn hold(self: &Arc<Self>, max_wait: Option<Duration>) -> Result<Lease<S>, LockError> {
        self.acquire(Deadline::after(max_wait)).await
    }

    async fn try_hold(self: &Arc<Self>) -> Result<Option<Lease<S>>, LockError> {
        let wait = WaitPolicy::QUEUE.busy_timeout(self.settings.retry_interval);
        self.try_acquire(wait).await
    }
}
