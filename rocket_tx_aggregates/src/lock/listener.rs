//! Waking waiters for a lease on Postgres, by LISTEN and NOTIFY.
//!
//! It only makes waiting shorter: waiters poll as well, so a lost notification costs one retry
//! interval.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgListener};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::keyed::Keyed;

const CHANNEL: &str = "aggregate_locks";

/// One connection that listens for the whole process.
#[derive(Clone)]
pub(super) struct Listener(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    bells: Keyed<Bell>,
    /// Started by the first waiter.
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// Wakes the waiters for one key.
struct Bell {
    name: Arc<str>,
    rung: Arc<Notify>,
    bells: Keyed<Bell>,
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.bells.forget(&self.name);
    }
}

/// FNV-1a: the same in every build of every process.
pub(super) fn hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Sixteen digits that stand for a key. Two keys with the same bell wake each other's waiters for
/// nothing.
pub(super) fn bell(key: &str) -> String {
    format!("{:016x}", hash(key))
}

impl Listener {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self(Arc::new(Inner {
            options,
            bells: Keyed::default(),
            task: OnceLock::new(),
        }))
    }

    /// Resolves at the next notification for `key`, counted from this call, not from its first
    /// poll.
    pub(super) fn wait_for_release(&self, key: &str) -> impl Future<Output = ()> + Send + use<> {
        let inner = &self.0;
        inner.task.get_or_init(|| {
            let work = listen(inner.options.clone(), inner.bells.clone());
            AbortOnDropHandle::new(tokio::spawn(work))
        });
        let bells = inner.bells.clone();
        let bell = inner.bells.get(&bell(key), |name| Bell {
            name,
            rung: Arc::default(),
            bells,
        });
        let rung = bell
            .as_ref()
            .ok()
            .map(|bell| Arc::clone(&bell.rung).notified_owned());
        async move {
            match rung {
                Some(rung) => rung.await,
                None => std::future::pending().await,
            }
            drop(bell);
        }
    }
}

/// After how long without a notification the server is asked whether it is still there. A peer that
/// vanished closes no connection, and nothing is sent on this one that could fail.
const QUIET: Duration = Duration::from_secs(5);

/// How long a living server takes at most for these statements.
const ANSWER: Duration = Duration::from_secs(3);

async fn listen(options: PgConnectOptions, bells: Keyed<Bell>) {
    let mut was_heard = true;
    loop {
        let heard = hear(&options, &bells, &mut was_heard).await;
        if let Err(error) = heard
            && std::mem::take(&mut was_heard)
        {
            tracing::warn!(%error, "not listening for released leases; polling meanwhile");
        }
        // Notifications sent meanwhile were missed.
        bells.for_each(|bell| bell.rung.notify_waiters());
        sleep(Duration::from_secs(1)).await;
    }
}

/// Until the connection ends, or the server does not answer. sqlx then closes it in a task of its
/// own, which ends when the network reports that the peer is gone.
async fn hear(
    options: &PgConnectOptions,
    bells: &Keyed<Bell>,
    is_heard: &mut bool,
) -> sqlx::Result<()> {
    let pool = sqlx::pool::PoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ANSWER)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    answered(listener.listen(CHANNEL)).await?;
    if !std::mem::replace(is_heard, true) {
        tracing::info!("listening for released leases again");
    }
    bells.for_each(|bell| bell.rung.notify_waiters());
    loop {
        let Ok(heard) = timeout(QUIET, listener.try_recv()).await else {
            answered((&mut listener).execute("SELECT 1")).await?;
            continue;
        };
        let Some(notification) = heard? else {
            return Ok(());
        };
        if let Some(bell) = bells.find(notification.payload()) {
            bell.rung.notify_waiters();
        }
    }
}

async fn answered<T>(asked: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let answer = timeout(ANSWER, asked).await;
    answer.unwrap_or_else(|_| Err(no_answer(ANSWER)))
}

/// The network is silent, or the server is.
pub(super) fn no_answer(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("the server did not answer within {limit:?}"),
    ))
}
