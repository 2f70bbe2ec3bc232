//! The sessions of a database: as many as may be, each with one user at a time.
//!
//! No session gets to a second user before it has [proved](super::proof) that it answers to what it
//! is asked, that no transaction is open, and that nothing of its first user is left. A transaction
//! proves that with its own COMMIT or ROLLBACK, in the same round trip; what was lent for anything
//! else proves it in a task of its own, so that no request waits for it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use parking_lot::Mutex;
use sqlx::Connection;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::session::{Live, PROMPT, Place, PostgresSession, say_goodbye};
use super::settings::Settings;
use crate::db::Patience;

/// A session that was used this recently is taken as alive.
const FRESH: Duration = Duration::from_millis(50);

/// How old a session may become: what a server, or a pooler, has piled up for it goes with it.
const OLDEST: Duration = Duration::from_secs(30 * 60);

/// How many sessions there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) most: u32,
    /// Kept open while idle.
    pub(crate) least: u32,
    /// How long a request waits for a session, a new one included.
    pub(crate) wait: Duration,
    /// After how long an idle one is closed.
    pub(crate) idle: Duration,
}

/// Whether a session that may have died while it was idle is good enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Yes: BEGIN comes first, and finds out.
    Unchecked,
    /// No: it is asked, and another one taken if it does not answer.
    Verified,
}

/// The sessions of a database.
#[derive(Clone)]
pub(crate) struct Sessions {
    settings: Arc<Settings>,
    limits: Limits,
    /// One permit a session. First come, first served.
    permits: Arc<Semaphore>,
    idle: Arc<Idle>,
    lent: TaskTracker,
}

/// Sessions that have proved themselves and that nobody uses, the last used on top.
#[derive(Default)]
pub(super) struct Idle {
    sessions: Mutex<Vec<(Live, Instant)>>,
    closed: std::sync::atomic::AtomicBool,
}

impl Idle {
    pub(super) fn put(&self, live: Live) {
        let mut sessions = self.sessions.lock();
        // Looked at under the lock: what comes later is never left behind.
        if !self.closed.load(std::sync::atomic::Ordering::SeqCst) {
            sessions.push((live, Instant::now()));
        }
    }

    fn take(&self) -> Option<(Live, Instant)> {
        self.sessions.lock().pop()
    }

    /// Closes all that lie here.
    fn clear(&self) {
        let cleared = std::mem::take(&mut *self.sessions.lock());
        drop(cleared);
    }

    fn close(&self) -> Vec<(Live, Instant)> {
        let mut sessions = self.sessions.lock();
        self.closed.store(true, std::sync::atomic::Ordering::SeqCst);
        std::mem::take(&mut *sessions)
    }

    /// Those that nobody has needed for long, but for the `least` that stay; and those that are old.
    fn take_cold(&self, limits: &Limits) -> Vec<Live> {
        let mut sessions = self.sessions.lock();
        let least = limits.least as usize;
        let (mut cold, mut kept) = (Vec::new(), Vec::new());
        // The last used first: they are the ones to keep.
        for (live, since) in std::mem::take(&mut *sessions).into_iter().rev() {
            let is_idle = since.elapsed() > limits.idle && kept.len() >= least;
            match is_idle || live.opened.elapsed() > OLDEST {
                true => cold.push(live),
                false => kept.push((live, since)),
            }
        }
        kept.reverse();
        *sessions = kept;
        cold
    }
}

impl Sessions {
    /// Opens none yet.
    pub(crate) fn new(settings: Settings, limits: Limits) -> Self {
        let sessions = Self {
            settings: Arc::new(settings),
            limits,
            permits: Arc::new(Semaphore::new(limits.most.max(1) as usize)),
            idle: Arc::default(),
            lent: TaskTracker::new(),
        };
        tokio::spawn(keep(
            Arc::downgrade(&sessions.idle),
            Arc::clone(&sessions.settings),
            sessions.lent.clone(),
            limits,
        ));
        sessions
    }

    /// With a session that is open already.
    pub(super) fn with(self, live: Live) -> Self {
        self.idle.put(live);
        self
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn wait(&self) -> Duration {
        self.limits.wait
    }

    /// Lends a session, within [`Limits::wait`].
    ///
    /// Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    ///
    /// [`sqlx::Error::PoolTimedOut`] if all are lent for so long; what the connection met if a new
    /// one could not be opened.
    pub(crate) async fn acquire(
        &self,
        patience: Patience,
        liveness: Liveness,
    ) -> sqlx::Result<PostgresSession> {
        let deadline = tokio::time::Instant::now() + self.limits.wait;
        let permits = Arc::clone(&self.permits);
        let permit = match patience {
            Patience::Never => permits.try_acquire_owned().ok(),
            Patience::Wait | Patience::AtMost(_) => {
                let turn = timeout_at(deadline, permits.acquire_owned()).await;
                turn.ok().and_then(Result::ok)
            }
        };
        let Some(permit) = permit else {
            return Err(match self.permits.is_closed() {
                true => sqlx::Error::PoolClosed,
                false => sqlx::Error::PoolTimedOut,
            });
        };
        let place = Place {
            idle: Arc::clone(&self.idle),
            _permit: permit,
            _lent: self.lent.token(),
        };
        while let Some((mut live, since)) = self.idle.take() {
            if liveness == Liveness::Unchecked || since.elapsed() < FRESH {
                return Ok(PostgresSession::new(live, place));
            }
            match timeout(PROMPT, live.connection.ping()).await {
                Ok(Ok(())) => return Ok(PostgresSession::new(live, place)),
                Ok(Err(_)) => {}
                // The network, or the server, is silent: the others will not answer either.
                Err(_) => self.forget_idle(),
            }
        }
        // Boxed: the future of a handler that finds a session here stays small.
        let live = match patience {
            Patience::Wait | Patience::AtMost(_) => {
                Box::pin(self.open_patiently(deadline)).await?
            }
            // A new session takes a moment, but nobody whom we might wait for is involved in it.
            Patience::Never => Box::pin(timeout(PROMPT, Live::open(&self.settings)))
                .await
                .unwrap_or_else(|_| Err(no_answer(PROMPT)))?,
        };
        Ok(PostgresSession::new(live, place))
    }

    /// Tries again for as long as the server starts, or is not there yet.
    async fn open_patiently(&self, deadline: tokio::time::Instant) -> sqlx::Result<Live> {
        let mut last = None;
        let opening = (|| Live::open(&self.settings))
            .retry(
                ExponentialBuilder::default()
                    .with_jitter()
                    .with_min_delay(Duration::from_millis(20))
                    .with_max_delay(Duration::from_millis(500))
                    .with_max_times(1_000),
            )
            .when(may_pass)
            .notify(|error, _| last = Some(error.to_string()));
        match timeout_at(deadline, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(match last {
                Some(error) => sqlx::Error::Io(std::io::Error::new(
                    std::io::ErrorKind::NotConnected,
                    format!("no session within {:?}: {error}", self.limits.wait),
                )),
                None => no_answer(self.limits.wait),
            }),
        }
    }

    /// Closes the sessions that nobody uses, because one like them did not answer.
    pub(super) fn forget_idle(&self) {
        self.idle.clear();
    }

    /// Waits for those that are lent.
    pub(crate) async fn close(&self) {
        self.permits.close();
        for (live, _) in self.idle.close() {
            say_goodbye(live).await;
        }
        self.lent.close();
        self.lent.wait().await;
    }
}

pub(super) fn no_answer(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("the server did not answer within {limit:?}"),
    ))
}

/// The server is starting, restarting or full, or is not there yet.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("57P") || code == "53300"),
        _ => false,
    }
}

/// Closes what nobody needs, and keeps open what is to be kept, for as long as there is a pool.
async fn keep(idle: Weak<Idle>, settings: Arc<Settings>, lent: TaskTracker, limits: Limits) {
    const EVERY: Duration = Duration::from_secs(1);

    loop {
        sleep(EVERY).await;
        let Some(idle) = idle.upgrade() else {
            return;
        };
        for live in idle.take_cold(&limits) {
            say_goodbye(live).await;
        }
        let open = idle.sessions.lock().len() + lent.len();
        if open < limits.least as usize
            && let Ok(Ok(live)) = timeout(PROMPT, Live::open(&settings)).await
        {
            idle.put(live);
        }
    }
}
