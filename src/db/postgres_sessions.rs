//! Sessions that were used a moment ago, in front of the pool that opens and closes them.
//!
//! sqlx's pool asks every session whether it still answers when it comes back: a round trip a
//! request. Under load a session is needed again at once; it is lent on as it is, and asked only if
//! it has lain here for a while.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::Patience;

/// A session that was used this recently is taken as alive.
const FRESH: Duration = Duration::from_millis(50);

/// How long a session lies here before it goes back to the pool, which has a rule for idle ones.
const HOT: Duration = Duration::from_secs(5);

/// How long it is lent on before it goes back all the same: the pool has a rule for old ones too.
const RECALLED: Duration = Duration::from_secs(60);

/// A new session takes a moment, but nobody whom we might wait for is involved in it.
const CONNECTING: Duration = Duration::from_secs(1);

/// The sessions of a database, as many as the pool may have.
#[derive(Clone)]
pub(crate) struct Sessions {
    pool: PgPool,
    /// One permit a session: the pool itself is never waited for. First come, first served.
    permits: Arc<Semaphore>,
    hot: Arc<Mutex<Vec<Idle>>>,
}

struct Idle {
    session: PoolConnection<Postgres>,
    /// When the pool gave it.
    given: Instant,
    since: Instant,
    /// Says that its last statements met no error, if that is not known anyway.
    well: Option<Arc<AtomicBool>>,
}

impl Idle {
    fn is_surely_alive(&self) -> bool {
        let well = self
            .well
            .as_ref()
            .is_none_or(|well| well.load(Ordering::Relaxed));
        well && self.since.elapsed() < FRESH
    }
}

/// Whether a session that may have died while it was idle is good enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Yes: BEGIN comes first, and finds out.
    Any,
    /// No: it is asked, and another one taken if it does not answer.
    Alive,
}

/// A borrowed session. Dropping it lends it on.
pub struct PostgresSession {
    /// Empty only in `Drop`.
    session: Option<PoolConnection<Postgres>>,
    given: Instant,
    fate: Fate,
    well: Option<Arc<AtomicBool>>,
    hot: Arc<Mutex<Vec<Idle>>>,
    _permit: OwnedSemaphorePermit,
}

/// What becomes of a session that comes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// It is lent on.
    Hot,
    /// The pool sends what is queued on it, and sees whether it is well.
    Checked,
    /// It is closed.
    Closed,
}

impl Sessions {
    pub(crate) fn new(pool: PgPool) -> Self {
        let permits = usize::try_from(pool.options().get_max_connections()).unwrap_or(usize::MAX);
        let hot = Arc::default();
        tokio::spawn(cool_down(Arc::downgrade(&hot)));
        Self {
            pool,
            permits: Arc::new(Semaphore::new(permits)),
            hot,
        }
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Dropping the future gives up the place in the queue.
    pub(crate) async fn acquire(
        &self,
        patience: Patience,
        need: Need,
    ) -> sqlx::Result<PostgresSession> {
        let permits = Arc::clone(&self.permits);
        let permit = match patience {
            Patience::Never => permits.try_acquire_owned().ok(),
            Patience::Wait | Patience::AtMost(_) => {
                let limit = self.pool.options().get_acquire_timeout();
                let turn = timeout(limit, permits.acquire_owned()).await;
                turn.ok()
                    .map(|permit| permit.map_err(|_| sqlx::Error::PoolClosed))
                    .transpose()?
            }
        };
        let permit = permit.ok_or(match self.pool.is_closed() {
            true => sqlx::Error::PoolClosed,
            false => sqlx::Error::PoolTimedOut,
        })?;
        let lend = |session, given| PostgresSession {
            session: Some(session),
            given,
            fate: Fate::Hot,
            well: None,
            hot: Arc::clone(&self.hot),
            _permit: permit,
        };
        loop {
            let idle = self.hot.lock().pop();
            let Some(mut idle) = idle else {
                break;
            };
            let good = need == Need::Any || idle.is_surely_alive();
            if good || idle.session.ping().await.is_ok() {
                return Ok(lend(idle.session, idle.given));
            }
            idle.session.close_on_drop();
        }
        // Boxed: the future of a handler that finds a session here stays small.
        let opened = match need {
            Need::Any => self.pool.try_acquire(),
            Need::Alive => None,
        };
        if let Some(session) = opened {
            return Ok(lend(session, Instant::now()));
        }
        let opening = self.pool.acquire();
        match patience {
            Patience::Wait | Patience::AtMost(_) => {
                Ok(lend(Box::pin(opening).await?, Instant::now()))
            }
            Patience::Never => match Box::pin(timeout(CONNECTING, opening)).await {
                Ok(session) => Ok(lend(session?, Instant::now())),
                Err(_) => Err(sqlx::Error::PoolTimedOut),
            },
        }
    }

    /// Waits for those that are lent.
    pub(crate) async fn close(&self) {
        self.permits.close();
        self.hot.lock().clear();
        self.pool.close().await;
    }
}

/// Gives sessions that nobody has needed for a while back to the pool.
async fn cool_down(hot: Weak<Mutex<Vec<Idle>>>) {
    loop {
        sleep(HOT / 5).await;
        let Some(hot) = hot.upgrade() else {
            return;
        };
        let cold: Vec<Idle> = {
            let mut hot = hot.lock();
            let all = hot.drain(..);
            let (kept, cold) = all.partition(|idle| idle.since.elapsed() < HOT);
            *hot = kept;
            cold
        };
        drop(cold);
    }
}

const LENT: &str = "a session is there for as long as it is lent";

impl PostgresSession {
    /// How it is to come back. The worst that was said counts.
    pub(crate) fn come_back(&mut self, fate: Fate) {
        self.fate = self.fate.max(fate);
    }

    /// It is lent on after all; `well` says whether it must be asked first.
    pub(super) fn vouched_for(&mut self, well: &Arc<AtomicBool>) {
        if self.fate == Fate::Checked {
            self.fate = Fate::Hot;
            self.well = Some(Arc::clone(well));
        }
    }
}

impl Deref for PostgresSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.session.as_ref().expect(LENT)
    }
}

impl DerefMut for PostgresSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.session.as_mut().expect(LENT)
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        match self.fate {
            Fate::Hot if self.given.elapsed() < RECALLED => self.hot.lock().push(Idle {
                session,
                given: self.given,
                since: Instant::now(),
                well: self.well.take(),
            }),
            Fate::Hot | Fate::Checked => drop(session),
            Fate::Closed => session.close_on_drop(),
        }
    }
}
