//! The sessions of a database: as many as may be, each with one user at a time.
//!
//! No session gets to a second user before it has [proved](super::proof) that it answers to what it
//! is asked, that no transaction is open, and that nothing of its first user is left. A transaction
//! proves that with its own COMMIT or ROLLBACK, in the same round trip; what was lent for anything
//! else proves it in a task of its own, so that no request waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use parking_lot::Mutex;
use sqlx::Connection;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::session::{Live, PROMPT, Place, PostgresSession, say_goodbye};
use super::settings::Settings;
use crate::db::error_class::{ends_session, while_connecting};
use crate::db::health::Health;
use crate::db::{Attachment, ErrorClass, WaitPolicy};

/// A session that was used this recently is taken as alive.
const FRESH: Duration = Duration::from_millis(50);

/// How old a session may become: what a server, or a pooler, has piled up for it goes with it.
const OLDEST: Duration = Duration::from_secs(30 * 60);

/// How many sessions there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At most so many at once.
    pub most: u32,
    /// Kept open while idle.
    pub least: u32,
    /// How long a request waits for a session, a new one included.
    pub wait: Duration,
    /// After how long an idle one is closed.
    pub idle: Duration,
}

/// Whether a session that may have died while it was idle is good enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Yes: BEGIN comes first, and finds out.
    Unchecked,
    /// No: it is asked, and another one taken if it does not answer.
    Verified,
}

/// The sessions of a database. A clone is another handle on the same ones.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    settings: Settings,
    limits: Limits,
    /// The pool's place in its service, which is known later than the pool.
    attachment: Arc<OnceLock<Attachment>>,
    /// One permit a session. First come, first served.
    permits: Arc<Semaphore>,
    /// Sessions that have proved themselves and that nobody uses, the last used on top. `None` once
    /// the pool is closed.
    idle: Mutex<Option<Vec<Idle>>>,
    checked_out: TaskTracker,
    opening: Opening,
}

/// Since when sessions are being opened without success.
struct Opening {
    made: Instant,
    /// In milliseconds after `made`, and one more; 0 if the last attempt succeeded.
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
        // Lost only to another who is opening too.
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
    /// Opens none yet.
    pub fn new(settings: Settings, limits: Limits, attachment: Arc<OnceLock<Attachment>>) -> Self {
        let inner = Arc::new(Inner {
            settings,
            limits,
            attachment,
            permits: Arc::new(Semaphore::new(limits.most.max(1) as usize)),
            idle: Mutex::new(Some(Vec::new())),
            checked_out: TaskTracker::new(),
            opening: Opening::new(),
        });
        tokio::spawn(keep(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// With a session that is open already.
    pub(super) fn with(self, live: Live) -> Self {
        self.put(live);
        self
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn wait(&self) -> Duration {
        self.0.limits.wait
    }

    /// How long one request may take to be settled.
    pub(super) fn settle_timeout(&self) -> Duration {
        let attachment = self.0.attachment.get();
        let known = attachment.and_then(|attachment| attachment.settle_timeout.get());
        known.copied().unwrap_or(Attachment::SETTLE_TIMEOUT)
    }

    pub(super) fn health(&self) -> Option<&Health> {
        Some(&self.0.attachment.get()?.health)
    }

    /// Opens a session. Others see for how long none could be opened.
    async fn open(&self, wait: WaitPolicy, limit: Duration) -> sqlx::Result<Live> {
        self.0.opening.start();
        let opened = if wait.queues() {
            open_patiently(&self.0.settings, limit).await
        } else {
            // A new session takes a moment, but needs nothing that another request may hold.
            timeout(PROMPT, Live::open(&self.0.settings))
                .await
                .unwrap_or_else(|_| Err(no_answer(PROMPT)))
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

    /// Why no session became free in time.
    fn none_free(&self) -> sqlx::Error {
        let none = sqlx::Error::PoolTimedOut;
        match self.0.permits.is_closed() {
            true => sqlx::Error::PoolClosed,
            // Who has the places waits for the server, not for others.
            false if self.0.opening.has_failed_for(self.wait() / 2) => while_connecting(none),
            false => none,
        }
    }

    /// Takes back a session that has proved itself.
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

    /// Lends a session, within [`Limits::wait`].
    ///
    /// Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    ///
    /// [`sqlx::Error::PoolTimedOut`] if all are lent for so long; what the connection met if a new
    /// one could not be opened.
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
        let place = Place {
            sessions: self.clone(),
            _permit: permit,
            _checked_out: self.0.checked_out.token(),
        };
        // The pool may have been closed after the permit was taken, and did not wait for this.
        if self.0.permits.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        while let Some(Idle { mut live, since }) = self.take() {
            if liveness == Liveness::Unchecked || since.elapsed() < FRESH {
                return Ok(PostgresSession::new(live, false, place));
            }
            match timeout(PROMPT, live.connection.ping()).await {
                Ok(Ok(())) => return Ok(PostgresSession::new(live, false, place)),
                Ok(Err(_)) => {}
                // The network, or the server, is silent: the others will not answer either.
                Err(_) => self.forget_idle(),
            }
        }
        // Boxed: the future of a handler that finds a session here stays small.
        let limit = deadline - tokio::time::Instant::now();
        let live = Box::pin(self.open(wait, limit)).await?;
        Ok(PostgresSession::new(live, true, place))
    }

    /// Closes the sessions that nobody uses, because one like them did not answer.
    pub(super) fn forget_idle(&self) {
        let forgotten = self.0.idle.lock().as_mut().map(std::mem::take);
        drop(forgotten);
    }

    /// Waits for those that are lent.
    pub(crate) async fn close(&self) {
        self.0.permits.close();
        let idle = self.0.idle.lock().take();
        for Idle { live, .. } in idle.into_iter().flatten() {
            say_goodbye(live).await;
        }
        self.0.checked_out.close();
        self.0.checked_out.wait().await;
    }
}

impl Inner {
    /// Takes out those that nobody has needed for long, but for the `least` that stay; and those
    /// that are old.
    fn take_cold(&self) -> Vec<Live> {
        let mut idle = self.idle.lock();
        let Some(idle) = &mut *idle else {
            return Vec::new();
        };
        let least = self.limits.least as usize;
        let (mut cold, mut kept) = (Vec::new(), Vec::new());
        // The last used first: they are the ones to keep.
        for one in std::mem::take(idle).into_iter().rev() {
            let is_unneeded = one.since.elapsed() > self.limits.idle && kept.len() >= least;
            match is_unneeded || one.live.opened.elapsed() > OLDEST {
                true => cold.push(one.live),
                false => kept.push(one),
            }
        }
        kept.reverse();
        *idle = kept;
        cold
    }

    /// How many more are to be kept open.
    fn missing(&self) -> usize {
        let idle = self.idle.lock().as_ref().map(Vec::len);
        let open = idle.map_or(usize::MAX, |idle| idle + self.checked_out.len());
        (self.limits.least as usize).saturating_sub(open)
    }
}

async fn open_patiently(settings: &Settings, limit: Duration) -> sqlx::Result<Live> {
    let opened = patiently(|| Live::open(settings), may_pass, limit).await;
    opened.map_err(while_connecting)
}

/// Connects, and tries again for `limit` after errors that may pass.
///
/// # Errors
///
/// What the last attempt met.
pub(super) async fn patiently<T, F>(
    connect: impl FnMut() -> F,
    may_pass: impl FnMut(&sqlx::Error) -> bool,
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
        .when(may_pass)
        .notify(|error, _| *last.lock() = Some(error.to_string()));
    match timeout(limit, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(match last.into_inner() {
            Some(error) => sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::NotConnected,
                format!("{error}, for {limit:?}"),
            )),
            None => no_answer(limit),
        }),
    }
}

pub(super) fn no_answer(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("no answer within {limit:?}"),
    ))
}

/// The server is starting, restarting or full, or is not there yet.
pub(super) fn may_pass(error: &sqlx::Error) -> bool {
    ends_session(error) || ErrorClass::of(error) == ErrorClass::Busy
}

/// Closes what nobody needs, and keeps open what is to be kept, for as long as there is a pool.
async fn keep(sessions: Weak<Inner>) {
    const EVERY: Duration = Duration::from_secs(1);

    loop {
        sleep(EVERY).await;
        let Some(inner) = sessions.upgrade() else {
            return;
        };
        for live in inner.take_cold() {
            say_goodbye(live).await;
        }
        if inner.missing() > 0
            && let Ok(Ok(live)) = timeout(PROMPT, Live::open(&inner.settings)).await
        {
            Sessions(inner).put(live);
        }
    }
}
