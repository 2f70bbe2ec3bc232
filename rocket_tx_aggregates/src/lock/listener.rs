//! Waking the waiters for a lease on Postgres, with LISTEN and NOTIFY.
//!
//! Notifications only shorten the wait. Waiters also poll, so a lost notification costs them one
//! retry interval.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgListener};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::keyed::Keyed;

const CHANNEL: &str = "aggregate_locks";

/// The one connection that listens for all waiters of a lock manager.
#[derive(Clone)]
pub(super) struct Listener(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    /// Identifies this listener in the payloads of its process.
    sender: String,
    waiters: Keyed<Waiters>,
    /// Started by the first task that waits.
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// The waiters in this process for the keys of one notification payload.
struct Waiters {
    payload: Arc<str>,
    released: Arc<Notify>,
    all: Keyed<Waiters>,
}

impl Drop for Waiters {
    fn drop(&mut self) {
        self.all.forget(&self.payload);
    }
}

/// Returns the FNV-1a hash of a key. It has the same value in every build and every process.
pub(super) fn hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns the notification payload of a key: its hash as 16 hexadecimal digits. Keys with the same
/// hash wake each other's waiters needlessly. A colon and the sender may follow, who is not woken.
pub(super) fn payload(key: &str) -> String {
    format!("{:016x}", hash(key))
}

impl Listener {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self(Arc::new(Inner {
            options,
            sender: format!("{:016x}", fastrand::u64(..)),
            waiters: Keyed::default(),
            task: OnceLock::new(),
        }))
    }

    /// Returns the payload that wakes the waiters for `key` except those of this process. When this
    /// process gives way, its next task waits for another process to take the lease and to release
    /// it again.
    pub(super) fn payload_to_others(&self, key: &str) -> String {
        format!("{:016x}:{}", hash(key), self.0.sender)
    }

    /// Returns a future that resolves at the next notification for `key` after this call. A
    /// notification between the call and the first poll counts, once the listener has started. It
    /// is started by the first poll.
    pub(super) fn wait_for_release(&self, key: &str) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.0);
        let all = inner.waiters.clone();
        let waiters = inner.waiters.get(&payload(key), |payload| Waiters {
            payload,
            released: Arc::default(),
            all,
        });
        let released = waiters
            .as_ref()
            .ok()
            .map(|waiters| Arc::clone(&waiters.released).notified_owned());
        async move {
            inner.task.get_or_init(|| {
                let work = listen(
                    inner.options.clone(),
                    inner.waiters.clone(),
                    inner.sender.clone(),
                );
                AbortOnDropHandle::new(tokio::spawn(work))
            });
            match released {
                Some(released) => released.await,
                None => std::future::pending().await,
            }
            drop(waiters);
        }
    }
}

/// The server is pinged after this time without a notification. A peer that vanished does not close
/// its connection, and the listener sends nothing else that could fail.
const PING_AFTER: Duration = Duration::from_secs(5);

/// The time limit for connecting, for LISTEN and for a ping.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Listens for ever. When a connection ends, it waits one second and opens a new one.
async fn listen(options: PgConnectOptions, waiters: Keyed<Waiters>, sender: String) {
    let mut is_listening = true;
    loop {
        let ended = listen_once(&options, &waiters, &sender, &mut is_listening).await;
        if let Err(error) = ended
            && std::mem::take(&mut is_listening)
        {
            tracing::warn!(
                %error,
                "not listening for released leases; waiters poll until the listener reconnects"
            );
        }
        // Notifications may have been missed.
        wake_all(&waiters);
        sleep(Duration::from_secs(1)).await;
    }
}

fn wake_all(waiters: &Keyed<Waiters>) {
    waiters.for_each(|waiters| waiters.released.notify_waiters());
}

/// Listens on one connection until it ends or the server does not reply. sqlx then closes the
/// connection in a separate task, which ends when the network reports that the peer is gone.
async fn listen_once(
    options: &PgConnectOptions,
    waiters: &Keyed<Waiters>,
    sender: &str,
    is_listening: &mut bool,
) -> sqlx::Result<()> {
    let pool = sqlx::pool::PoolOptions::new()
        .max_connections(1)
        .acquire_timeout(REPLY_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    with_reply_timeout(listener.listen(CHANNEL)).await?;
    if !std::mem::replace(is_listening, true) {
        tracing::info!("listening for released leases again");
    }
    // Notifications before this LISTEN were missed.
    wake_all(waiters);
    loop {
        let Ok(received) = timeout(PING_AFTER, listener.try_recv()).await else {
            with_reply_timeout((&mut listener).execute("SELECT 1")).await?;
            continue;
        };
        let Some(notification) = received? else {
            return Ok(());
        };
        let (key, by) = match notification.payload().split_once(':') {
            Some((key, by)) => (key, Some(by)),
            None => (notification.payload(), None),
        };
        if by != Some(sender)
            && let Some(waiters) = waiters.find(key)
        {
            waiters.released.notify_waiters();
        }
    }
}

async fn with_reply_timeout<T>(work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let result = timeout(REPLY_TIMEOUT, work).await;
    result.unwrap_or_else(|_| Err(no_reply(REPLY_TIMEOUT)))
}

/// Returns the error for a statement that the server did not reply to within `limit`.
pub(super) fn no_reply(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("the server did not reply within {limit:?}"),
    ))
}
