//! A lease that this process holds. It is renewed while it is held, and released when it is
//! dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::LockError;
use super::async_lock::Hold;
use super::gate::Pass;
use super::key::Key;
use super::renewal::Renewal;
use super::run_to_end::RunToEnd;
use super::store::{Claim, Fence, LeaseStore, ReleaseOutcome, Token};

/// The right to write one aggregate, until this value is dropped or the lease expires.
///
/// # Drop
///
/// A separate task releases the row, and then lets the next task of this process through the gate.
/// If the process is killed, the row remains until it expires.
pub struct Lease<S: LeaseStore>(Option<ActiveLease<S>>);

struct ActiveLease<S: LeaseStore> {
    key: Arc<Key<S>>,
    fencing_token: i64,
    /// Also has the claim.
    renewal: Renewal<S>,
    /// Runs the release, whichever thread drops the lease.
    runtime: Handle,
    /// Dropped last: the gate opens after the row is free.
    _pass: Pass,
}

const IS_ACTIVE: &str = "a lease is active until it is consumed";

impl<S: LeaseStore> Lease<S> {
    /// `sent_at` is the time just before the statement that took the lease was sent.
    pub(super) fn new(
        key: Arc<Key<S>>,
        claim: Claim,
        fencing_token: i64,
        sent_at: Instant,
        pass: Pass,
    ) -> Self {
        let ours_until = sent_at + claim.ttl;
        let (store, cap) = (key.store.clone(), key.settings.renewal_cap);
        let renewal = Renewal::start(&key.renewals, store, cap, claim, ours_until);
        Self(Some(ActiveLease {
            key,
            fencing_token,
            renewal,
            runtime: Handle::current(),
            _pass: pass,
        }))
    }

    fn active(&self) -> &ActiveLease<S> {
        self.0.as_ref().expect(IS_ACTIVE)
    }

    /// Returns the fencing token, which is greater than that of any earlier lease of this key. A
    /// service that receives the token can refuse calls with a smaller one.
    pub fn fencing_token(&self) -> i64 {
        self.active().fencing_token
    }

    /// Returns `true` if a renewal detected that this lease has no row any more. `false` is no
    /// guarantee: only the release shows whether the lease existed until then.
    pub fn is_lost(&self) -> bool {
        self.active().renewal.has_lost()
    }

    pub(crate) fn token(&self) -> &Token {
        &self.active().claim().token
    }

    pub(crate) fn needs_read_committed(&self) -> bool {
        self.active().key().store.needs_read_committed()
    }

    /// Releases the lease as dropping it does, and then calls `then`.
    pub(crate) fn release_then(mut self, then: impl FnOnce() + Send + 'static) {
        if let Some(active) = self.0.take() {
            active.spawn_release(|_| then());
        }
    }
}

impl<S: LeaseStore> Hold for Lease<S> {
    fn key(&self) -> &str {
        &self.active().claim().key
    }

    async fn begin_fenced_release(&mut self) -> Option<Fence> {
        let active = self.0.as_mut().expect(IS_ACTIVE);
        active.renewal.stop().await;
        Some(Fence {
            database: active.key().store.database().clone(),
            key: Arc::clone(&active.claim().key),
            token: active.claim().token.clone(),
        })
    }

    fn resume_renewal(&mut self) {
        let active = self.0.as_mut().expect(IS_ACTIVE);
        active.renewal.restart();
    }

    async fn release(mut self) -> Result<(), LockError> {
        let active = self.0.take().expect(IS_ACTIVE);
        let key = Arc::clone(&active.claim().key);
        let store = active.key().store.clone();
        let failed = |error: fn(String) -> LockError| Err(error(key.to_string()));
        match RunToEnd::new(store, active.release()).await {
            Some(ReleaseOutcome { ours: true, .. }) => Ok(()),
            Some(ReleaseOutcome { ours: false, .. }) => failed(LockError::Lost),
            None => failed(LockError::NotReleased),
        }
    }

    fn mark_released(mut self, wanted: bool) {
        let active = self.0.take().expect(IS_ACTIVE);
        let key = active.key();
        let wakes = key.gate.should_give_way(std::time::Instant::now());
        if key.mark_released(wanted, wakes) {
            key.wake_others();
        }
    }
}

impl<S: LeaseStore> Drop for Lease<S> {
    fn drop(&mut self) {
        if let Some(active) = self.0.take() {
            active.spawn_release(drop);
        }
    }
}

impl<S: LeaseStore> fmt::Debug for Lease<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claim = self.0.as_ref().map(ActiveLease::claim);
        f.debug_tuple("Lease").field(&claim).finish()
    }
}

impl<S: LeaseStore> ActiveLease<S> {
    fn key(&self) -> &Arc<Key<S>> {
        &self.key
    }

    fn claim(&self) -> &Claim {
        self.renewal.claim()
    }

    /// Releases the row in a separate task, and calls `then` with the result. If the runtime has
    /// ended, the task does not run and the row remains until it expires.
    fn spawn_release(self, then: impl FnOnce(Option<ReleaseOutcome>) + Send + 'static) {
        let runtime = self.runtime.clone();
        let _inside = runtime.enter();
        let store = self.key().store.clone();
        store.spawn(async move {
            then(self.release().await);
        });
    }

    /// Releases the row, with retries until it would have expired anyway. Wakes the waiters in
    /// other processes if this process gives way.
    async fn release(mut self) -> Option<ReleaseOutcome> {
        self.renewal.stop().await;
        let was_ours = self.renewal.is_surely_ours();
        let wakes = self.key().gate.should_give_way(std::time::Instant::now());
        let key = self.key();
        let pause = key.settings.retry_interval;
        let released = release_with_retries(&key.store, self.claim(), pause, was_ours, wakes).await;
        if let Some(released) = released {
            key.mark_released(released.wanted, wakes);
        }
        released
    }
}

/// Deletes the row of a lease, with retries until it would have expired anyway. Returns `None` if
/// no attempt succeeded.
///
/// The reply to a deletion may be lost; the next attempt then finds no row. `was_ours` tells
/// whether the lease was unexpired before the first attempt. If it was unexpired, a later attempt
/// that finds no row counts as a successful release. `wakes`: the waiters in other processes are
/// woken if the row was wanted.
pub(super) async fn release_with_retries<S: LeaseStore>(
    store: &S,
    claim: &Claim,
    mut pause: Duration,
    was_ours: bool,
    wakes: bool,
) -> Option<ReleaseOutcome> {
    let until = Instant::now() + claim.ttl;
    let mut is_first = true;
    loop {
        match store.release(&claim.key, &claim.token, wakes).await {
            Ok(released) => {
                let ours = released.ours || (was_ours && !is_first);
                return Some(ReleaseOutcome { ours, ..released });
            }
            Err(error) if Instant::now() + pause < until => {
                tracing::debug!(
                    key = %claim.key,
                    %error,
                    "could not release a lease; trying again"
                );
            }
            Err(error) => {
                tracing::warn!(
                    key = %claim.key,
                    %error,
                    "could not release a lease; other holders wait until it expires"
                );
                return None;
            }
        }
        is_first = false;
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
