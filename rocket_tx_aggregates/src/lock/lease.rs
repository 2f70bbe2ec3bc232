//! A lease that this process holds. It is renewed while it is held, and released when it is
//! dropped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::LockError;
use super::async_lock::Hold;
use super::gate::Pass;
use super::key::Key;
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
    claim: Claim,
    fencing_token: i64,
    ours_until: OursUntil,
    renewal: Renewal,
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
        let ours_until = OursUntil::new(sent_at, claim.ttl);
        let renewal = Renewal::start(&key, &claim, &ours_until);
        Self(Some(ActiveLease {
            key,
            claim,
            fencing_token,
            ours_until,
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
        self.active().renewal.0.lost.load(Ordering::SeqCst)
    }

    pub(crate) fn token(&self) -> &Token {
        &self.active().claim.token
    }

    pub(crate) fn needs_read_committed(&self) -> bool {
        self.active().key.store.needs_read_committed()
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
        &self.active().claim.key
    }

    async fn begin_fenced_release(&mut self) -> Option<Fence> {
        let active = self.0.as_mut().expect(IS_ACTIVE);
        active.renewal.stop().await;
        Some(Fence {
            database: active.key.store.database().clone(),
            key: Arc::clone(&active.claim.key),
            token: active.claim.token.clone(),
        })
    }

    fn resume_renewal(&mut self) {
        let active = self.0.as_mut().expect(IS_ACTIVE);
        active.renewal = Renewal::start(&active.key, &active.claim, &active.ours_until);
    }

    async fn release(mut self) -> Result<(), LockError> {
        let active = self.0.take().expect(IS_ACTIVE);
        let key = active.claim.key.to_string();
        let (done, released) = oneshot::channel();
        active.spawn_release(|released| {
            // The caller may have gone.
            let _ = done.send(released);
        });
        match released.await {
            Ok(Some(ReleaseOutcome { ours: true, .. })) => Ok(()),
            Ok(Some(ReleaseOutcome { ours: false, .. })) => Err(LockError::Lost(key)),
            // Without a result, the runtime has ended and the release is not retried any more.
            Ok(None) | Err(_) => Err(LockError::NotReleased(key)),
        }
    }

    fn mark_released(mut self, wanted: bool) {
        let active = self.0.take().expect(IS_ACTIVE);
        active.key.mark_released(wanted);
        if wanted {
            let store = active.key.store.clone();
            let key = Arc::clone(&active.claim.key);
            active.key.store.spawn(async move {
                if let Err(error) = store.notify_waiters(&key).await {
                    tracing::debug!(
                        %key,
                        %error,
                        "could not notify the waiters for a lease; they poll"
                    );
                }
            });
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
        let claim = self.0.as_ref().map(|active| &active.claim);
        f.debug_tuple("Lease").field(&claim).finish()
    }
}

impl<S: LeaseStore> ActiveLease<S> {
    /// Releases the row in a separate task, and calls `then` with the result. If the runtime has
    /// ended, the task does not run and the row remains until it expires.
    fn spawn_release(self, then: impl FnOnce(Option<ReleaseOutcome>) + Send + 'static) {
        let runtime = self.runtime.clone();
        let _inside = runtime.enter();
        let store = self.key.store.clone();
        store.spawn(async move {
            then(self.release().await);
        });
    }

    /// Releases the row, with retries until it would have expired anyway.
    async fn release(self) -> Option<ReleaseOutcome> {
        self.renewal.stop().await;
        let was_ours = !self.ours_until.has_passed();
        let (store, claim) = (&self.key.store, &self.claim);
        let pause = self.key.settings.retry_interval;
        let released = release_with_retries(store, claim, pause, was_ours).await;
        if let Some(released) = released {
            self.key.mark_released(released.wanted);
        }
        released
    }
}

/// Deletes the row of a lease, with retries until it would have expired anyway. Returns `None` if
/// no attempt succeeded.
///
/// The reply to a deletion may be lost; the next attempt then finds no row. `was_ours` tells
/// whether the lease was unexpired before the first attempt. If it was unexpired, a later attempt
/// that finds no row counts as a successful release.
pub(super) async fn release_with_retries<S: LeaseStore>(
    store: &S,
    claim: &Claim,
    mut pause: Duration,
    was_ours: bool,
) -> Option<ReleaseOutcome> {
    let until = Instant::now() + claim.ttl;
    let mut is_first = true;
    loop {
        match store.release(&claim.key, &claim.token).await {
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

/// The time until which no other process can have taken the lease over, by the clock of this
/// process. It is one time to live after the last successful statement was sent.
#[derive(Clone)]
struct OursUntil(Arc<parking_lot::Mutex<Instant>>);

impl OursUntil {
    fn new(sent_at: Instant, ttl: Duration) -> Self {
        Self(Arc::new(parking_lot::Mutex::new(sent_at + ttl)))
    }

    fn renewed(&self, sent_at: Instant, ttl: Duration) {
        *self.0.lock() = sent_at + ttl;
    }

    fn has_passed(&self) -> bool {
        Instant::now() >= *self.0.lock()
    }
}

/// Renews a lease whenever a third of its time to live has passed. Dropping this value stops the
/// renewal.
struct Renewal(Arc<RenewalState>);

/// Shared by a lease and the task that renews it.
struct RenewalState {
    stopped: CancellationToken,
    /// Locked while a statement is under way.
    under_way: Mutex<()>,
    /// A renewal detected that the row is not ours any more.
    lost: AtomicBool,
    ours_until: OursUntil,
}

impl Renewal {
    fn start<S: LeaseStore>(key: &Key<S>, claim: &Claim, ours_until: &OursUntil) -> Self {
        let renewing = Arc::new(RenewalState {
            stopped: CancellationToken::new(),
            under_way: Mutex::default(),
            lost: AtomicBool::new(false),
            ours_until: ours_until.clone(),
        });
        let cap = key.settings.renewal_cap;
        let renewal = Arc::clone(&renewing).renew(key.store.clone(), claim.clone(), cap);
        tokio::spawn(renewal);
        Self(renewing)
    }

    /// Stops the renewal. When this returns, no renewal is under way and none will start.
    async fn stop(&self) {
        self.0.stopped.cancel();
        drop(self.0.under_way.lock().await);
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.stopped.cancel();
    }
}

impl RenewalState {
    /// Renews the lease until the renewal is stopped, the lease is lost, or `cap` has passed. The
    /// lease counts as lost only if its row is gone or has another token. Errors are retried.
    async fn renew<S: LeaseStore>(self: Arc<Self>, store: S, claim: Claim, cap: Duration) {
        let taken = Instant::now();
        let interval = claim.ttl / 3;
        let mut pause = interval;
        while taken.elapsed() < cap {
            tokio::select! {
                () = self.stopped.cancelled() => return,
                () = sleep(pause) => {}
            }
            let _under_way = self.under_way.lock().await;
            if self.stopped.is_cancelled() {
                return;
            }
            let sent_at = Instant::now();
            pause = match store.renew(&claim, &self.stopped).await {
                Ok(true) => {
                    self.ours_until.renewed(sent_at, claim.ttl);
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
        }
        tracing::warn!(
            key = %claim.key,
            held = ?taken.elapsed(),
            "a lease has reached the renewal cap and is not renewed any more"
        );
    }
}
