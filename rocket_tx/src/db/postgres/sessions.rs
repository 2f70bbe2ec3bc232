//! The sessions of a database: a limited number, each with one user at a time.
//!
//! A session gets a second user only when it is clean: its replies [match](super::proof) its
//! statements, no transaction is open, and nothing of its first user is left. A transaction shows
//! this with its own COMMIT or ROLLBACK, in the same round trip. A session that was checked out for
//! anything else is cleaned in a separate task, so that no request waits for the cleaning.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use parking_lot::Mutex;
use sqlx::Connection;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::commit_turns::CommitTurns;
use super::session::{Live, PROMPT, PostgresSession, Slot, close_quietly};
use super::settings::Settings;
use crate::db::error_class::{Retried, ends_session, while_connecting};
use crate::db::health::Health;
use crate::db::{Attachment, ErrorClass, WaitPolicy};

/// A session that was used within this time counts as alive and is not pinged.
const FRESH: Duration = Duration::from_millis(50);

/// The same for [`Liveness::Recent`].
const RECENT: Duration = Duration::from_secs(1);

/// The maximum age of a session. An older session is closed when it is idle. This also frees the
/// memory that the server or a pooler has accumulated for the session.
const OLDEST: Duration = Duration::from_secs(30 * 60);

/// Limits on the number of sessions, and on the time to wait for one and to keep one idle.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    most: u32,
    least: u32,
    wait: Duration,
    idle: Duration,
}

impl Limits {
    /// Allows `most` sessions. No session stays open while idle for longer than 10 min, and a
    /// request waits for a session for at most 5 s.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            least: 0,
            wait: Duration::from_secs(5),
            idle: Duration::from_secs(600),
        }
    }

    /// Sets the number of sessions that stay open while idle.
    pub fn least(self, least: u32) -> Self {
        Self { least, ..self }
    }

    /// Sets how long a request waits for a session, including the time to open a new one.
    pub fn wait(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Sets how long a session may be idle before it is closed.
    pub fn idle(self, idle: Duration) -> Self {
        Self { idle, ..self }
    }
}

/// Whether `acquire` may return a session that may have died while it was idle.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Liveness {
    /// Yes: BEGIN is its first statement, and detects a dead session.
    Unchecked,
    /// Yes, but not one that was idle for more than a second: such a session is pinged first. For
    /// statements that can be repeated on another session.
    Recent,
    /// No: a session is pinged first, unless it was used a moment ago. If it does not reply,
    /// another session is taken.
    Verified,
}

/// The sessions of a database. A clone is another handle on the same sessions.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    settings: Settings,
    limits: Limits,
    /// Connects the pool with its service. Set after the pool is created.
    attachment: Arc<OnceLock<Attachment>>,
    /// One permit for each session. Requests get them in order of arrival.
    permits: Arc<Semaphore>,
    /// Clean sessions without a user, the most recently used one last. `None` once the pool is
    /// closed.
    idle: Mutex<Option<Vec<Idle>>>,
    checked_out: TaskTracker,
    opening: Opening,
    commit_turns: CommitTurns,
}

/// Records since when no session could be opened.
struct Opening {
    made: Instant,
    /// When the first attempt after the last success began: the milliseconds after `made`, plus
    /// one. 0 if there was no attempt since the last success. A session that is returned clean
    /// counts as a success too.
    since: AtomicU64,
}

impl Opening {
    fn new() -> Self {
        Self {
            made: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn start(&self) {
        let now = self.now() + 1;
        // If the exchange fails, an earlier attempt has already recorded its time.
        let _ = (self.since).compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn succeed(&self) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }

    fn has_failed_for(&self, limit: Duration) -> bool {
        match self.since.load(Ordering::Relaxed) {
            0 => false,
            since => Duration::from_millis(self.now().saturating_sub(since - 1)) >= limit,
        }
    }
}

struct Idle {
    live: Live,
    since: Instant,
}

impl Sessions {
    /// Creates the pool. Opens no session; a background task opens [`Limits::least`] of them later.
    pub fn new(settings: Settings, limits: Limits, attachment: Arc<OnceLock<Attachment>>) -> Self {
        let inner = Arc::new(Inner {
            settings,
            limits,
            attachment,
            permits: Arc::new(Semaphore::new(limits.most.max(1) as usize)),
            idle: Mutex::new(Some(Vec::new())),
            checked_out: TaskTracker::new(),
            opening: Opening::new(),
            commit_turns: CommitTurns::new(),
        });
        tokio::spawn(maintain(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Adds a session that is already open.
    pub(super) fn with(self, live: Live) -> Self {
        self.put(live);
        self
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn commit_turns(&self) -> &CommitTurns {
        &self.0.commit_turns
    }

    pub(super) fn wait(&self) -> Duration {
        self.0.limits.wait
    }

    /// Returns how long the settlement of one request may take.
    pub(super) fn settle_timeout(&self) -> Duration {
        let attachment = self.0.attachment.get();
        let known = attachment.and_then(|attachment| attachment.settle_timeout.get());
        known.copied().unwrap_or(Attachment::SETTLE_TIMEOUT)
    }

    pub(super) fn health(&self) -> Option<&Health> {
        Some(&self.0.attachment.get()?.health)
    }

    /// Opens a session. Records in `opening` and in the pool's health whether that succeeded.
    async fn open(&self, wait: WaitPolicy, limit: Duration) -> sqlx::Result<Live> {
        self.0.opening.start();
        let opened = if wait.queues() {
            open_with_retries(&self.0.settings, limit).await
        } else {
            // A request that must not queue may still open a session. Opening takes a moment, but
            // it does not depend on another request.
            timeout(PROMPT, Live::open(&self.0.settings))
                .await
                .unwrap_or_else(|_| Err(no_reply(PROMPT)))
                .map_err(while_connecting)
        };
        match &opened {
            Ok(_) => {
                self.0.opening.succeed();
                if let Some(health) = self.health() {
                    health.is_reached();
                }
            }
            Err(error) => {
                if let (ErrorClass::Unreachable, Some(health)) =
                    (ErrorClass::of(error), self.health())
                {
                    health.is_unreachable(error);
                }
            }
        }
        opened
    }

    /// Returns the error for a request that got no permit.
    fn none_free(&self) -> sqlx::Error {
        let none = sqlx::Error::PoolTimedOut;
        match self.0.permits.is_closed() {
            true => sqlx::Error::PoolClosed,
            // The tasks that hold the slots are waiting for the server, not for each other.
            false if self.0.opening.has_failed_for(self.wait() / 2) => while_connecting(none),
            false => none,
        }
    }

    /// Takes back a clean session.
    pub(super) fn put(&self, live: Live) {
        self.0.opening.succeed();
        if let Some(idle) = &mut *self.0.idle.lock() {
            let since = Instant::now();
            idle.push(Idle { live, since });
        }
    }

    fn take(&self) -> Option<Idle> {
        self.0.idle.lock().as_mut()?.pop()
    }

    /// Checks out a session within [`Limits::wait`].
    ///
    /// # Errors
    ///
    /// [`sqlx::Error::PoolTimedOut`] if all sessions stay checked out for that long;
    /// [`sqlx::Error::PoolClosed`] if the pool is closed; the error of the connection if a new
    /// session could not be opened.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the request leaves the queue.
    pub async fn acquire(
        &self,
        wait: WaitPolicy,
        liveness: Liveness,
    ) -> sqlx::Result<PostgresSession> {
        let deadline = tokio::time::Instant::now() + self.wait();
        let permits = Arc::clone(&self.0.permits);
        let permit = if wait.queues() {
            let turn = timeout_at(deadline, permits.acquire_owned()).await;
            turn.ok().and_then(Result::ok)
        } else {
            permits.try_acquire_owned().ok()
        };
        let Some(permit) = permit else {
            return Err(self.none_free());
        };
        let slot = Slot {
            sessions: self.clone(),
            _permit: permit,
            _checked_out: self.0.checked_out.token(),
        };
        // The pool may have been closed after the permit was taken and before `checked_out` counted
        // this session. Then `close` did not wait for it.
        if self.0.permits.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        while let Some(Idle { mut live, since }) = self.take() {
            let is_trusted = match liveness {
                Liveness::Unchecked => true,
                Liveness::Recent => since.elapsed() < RECENT,
                Liveness::Verified => since.elapsed() < FRESH,
            };
            if is_trusted {
                return Ok(PostgresSession::new(live, false, slot));
            }
            match timeout(PROMPT, live.connection.ping()).await {
                Ok(Ok(())) => return Ok(PostgresSession::new(live, false, slot)),
                Ok(Err(_)) => {}
                // The network or the server is silent, so the other idle sessions would get no
                // reply either.
                Err(_) => self.forget_idle(),
            }
        }
        // Boxed, so that the future stays small for a handler that finds an idle session.
        let limit = deadline - tokio::time::Instant::now();
        let live = Box::pin(self.open(wait, limit)).await?;
        Ok(PostgresSession::new(live, true, slot))
    }

    /// Closes the idle sessions. Called when another session to the same server did not reply or
    /// could not write.
    pub fn forget_idle(&self) {
        let forgotten = self.0.idle.lock().as_mut().map(std::mem::take);
        drop(forgotten);
    }

    /// Closes the idle sessions, and waits for the checked-out ones.
    pub(crate) async fn close(&self) {
        self.0.permits.close();
        let idle = self.0.idle.lock().take();
        for Idle { live, .. } in idle.into_iter().flatten() {
            close_quietly(live).await;
        }
        self.0.checked_out.close();
        self.0.checked_out.wait().await;
    }
}

impl Inner {
    /// Removes and returns two kinds of idle sessions: those that are older than [`OLDEST`], and
    /// those past the idle limit, as long as `least` others stay.
    fn take_expired(&self) -> Vec<Live> {
        let mut idle = self.idle.lock();
        let Some(idle) = &mut *idle else {
            return Vec::new();
        };
        let least = self.limits.least as usize;
        let (mut expired, mut kept) = (Vec::new(), Vec::new());
        // The most recently used ones first: those are kept.
        for one in std::mem::take(idle).into_iter().rev() {
            let is_unneeded = one.since.elapsed() > self.limits.idle && kept.len() >= least;
            match is_unneeded || one.live.opened.elapsed() > OLDEST {
                true => expired.push(one.live),
                false => kept.push(one),
            }
        }
        kept.reverse();
        *idle = kept;
        expired
    }

    /// Returns how many sessions are missing to keep `least` open.
    fn missing(&self) -> usize {
        let idle = self.idle.lock().as_ref().map(Vec::len);
        let open = idle.map_or(usize::MAX, |idle| idle + self.checked_out.len());
        (self.limits.least as usize).saturating_sub(open)
    }
}

async fn open_with_retries(settings: &Settings, limit: Duration) -> sqlx::Result<Live> {
    let opened = connect_with_retries(|| Live::open(settings), is_transient, limit).await;
    opened.map_err(while_connecting)
}

/// Connects, and retries for `limit` after transient errors.
///
/// # Errors
///
/// The first error that is not transient. After `limit`, an I/O error with the text of the last
/// error.
pub(in crate::db) async fn connect_with_retries<T, F>(
    connect: impl FnMut() -> F,
    is_transient: impl FnMut(&sqlx::Error) -> bool,
    limit: Duration,
) -> sqlx::Result<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    let last = Mutex::new(None);
    let connecting = connect
        .retry(
            ExponentialBuilder::default()
                .with_jitter()
                .with_min_delay(Duration::from_millis(20))
                .with_max_delay(Duration::from_millis(500))
                .with_max_times(10_000),
        )
        .when(is_transient)
        .notify(|error, _| *last.lock() = Some(Retried::of(error, limit)));
    match timeout(limit, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(match last.into_inner() {
            Some(error) => {
                sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::NotConnected, error))
            }
            None => no_reply(limit),
        }),
    }
}

pub(super) fn no_reply(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("no reply within {limit:?}"),
    ))
}

/// Returns whether a retry may help: the server is starting, restarting or full, or cannot be
/// reached yet.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    ends_session(error) || ErrorClass::of(error) == ErrorClass::Busy
}

/// Once a second, closes the idle sessions that have expired and opens one that is missing, until
/// the pool is dropped.
async fn maintain(sessions: Weak<Inner>) {
    const EVERY: Duration = Duration::from_secs(1);

    loop {
        sleep(EVERY).await;
        let Some(inner) = sessions.upgrade() else {
            return;
        };
        for live in inner.take_expired() {
            close_quietly(live).await;
        }
        if inner.missing() > 0
            && let Ok(Ok(live)) = timeout(PROMPT, Live::open(&inner.settings)).await
        {
            Sessions(inner).put(live);
        }
    }
}
