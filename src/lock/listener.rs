//! Waking those who wait for a lease on Postgres, by LISTEN and NOTIFY.
//!
//! It only makes waiting shorter: who waits polls as well, so a lost notification costs one retry
//! interval.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::keyed::Keyed;

const CHANNEL: &str = "aggregate_locks";

/// One connection that listens for the whole process.
#[derive(Clone)]
pub(super) struct Listener(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    bells: Keyed<Bell>,
    /// Started by the first who waits.
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// What those who wait for one key sleep by.
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

/// Sixteen digits that stand for a key: FNV-1a, the same in every build of every process. Two keys
/// with the same bell wake each other's waiters for nothing.
pub(super) fn bell(key: &str) -> String {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
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
    pub(super) fn freed(&self, key: &str) -> impl Future<Output = ()> + Send + use<> {
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

async fn listen(options: PgConnectOptions, bells: Keyed<Bell>) {
    loop {
        if let Err(error) = hear(&options, &bells).await {
            tracing::warn!(%error, "not listening for released leases; polling meanwhile");
        }
        // Whatever was said meanwhile was not heard.
        bells.for_each(|bell| bell.rung.notify_waiters());
        sleep(Duration::from_secs(1)).await;
    }
}

async fn hear(options: &PgConnectOptions, bells: &Keyed<Bell>) -> sqlx::Result<()> {
    let pool = sqlx::pool::PoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    bells.for_each(|bell| bell.rung.notify_waiters());
    while let Some(notification) = listener.try_recv().await? {
        if let Some(bell) = bells.find(notification.payload()) {
            bell.rung.notify_waiters();
        }
    }
    Ok(())
}
