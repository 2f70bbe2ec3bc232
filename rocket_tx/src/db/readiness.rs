//! Whether a database can serve now, asked without taking a connection from requests.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

/// Why a database cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// No connection, or no answer in time.
    #[error("cannot be reached")]
    Unreachable,

    /// Postgres: a standby, or a server whose default is to read only. SQLite: the file or its
    /// folder cannot be written.
    #[error("takes no writes")]
    ReadOnly,

    /// SQLite: the disk has no room.
    #[error("has no room left on its disk")]
    DiskFull,

    /// SQLite: its path leads to no file any more.
    #[error("is gone: its file was removed")]
    Gone,
}

/// Within which a verdict falls.
pub(super) const LIMIT: Duration = Duration::from_millis(1_500);

/// For how long a verdict stands: probes may come from many sides.
const STANDS: Duration = Duration::from_secs(1);

/// The last verdict on one database. Only one is being found at a time.
#[derive(Debug, Default)]
pub(super) struct Readiness(Mutex<Option<(Instant, Result<(), NotReady>)>>);

impl Readiness {
    /// The last verdict, if it still stands, or a new one. Within [`LIMIT`].
    pub(super) async fn verdict(
        &self,
        asking: impl Future<Output = Result<(), NotReady>>,
    ) -> Result<(), NotReady> {
        let finding = async {
            let mut last = self.0.lock().await;
            if let Some((when, verdict)) = *last
                && when.elapsed() < STANDS
            {
                return verdict;
            }
            // A little earlier than who waits for the lock gives up.
            let asked = timeout(LIMIT * 9 / 10, asking).await;
            let verdict = asked.unwrap_or(Err(NotReady::Unreachable));
            *last = Some((Instant::now(), verdict));
            verdict
        };
        let found = timeout(LIMIT, finding).await;
        found.unwrap_or(Err(NotReady::Unreachable))
    }
}
