//! Readiness: whether a database can serve now, checked without the connections that requests use.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

/// Why a database cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// No connection could be opened, the reply did not come in time, or the check failed for
    /// another reason.
    #[error("cannot be reached")]
    Unreachable,

    /// Postgres: a standby, or a server that is read-only by default. SQLite: the file or its
    /// folder cannot be written.
    #[error("takes no writes")]
    ReadOnly,

    /// SQLite: the disk is full.
    #[error("has no space left on its disk")]
    DiskFull,

    /// SQLite: the file no longer exists at its path.
    #[error("is gone: its file was removed")]
    Gone,
}

/// The time limit of a check.
pub(super) const LIMIT: Duration = Duration::from_millis(1_500);

/// How long a result is reused. Several monitors may probe the service at the same time.
const VALID_FOR: Duration = Duration::from_secs(1);

/// The last result for one database. Only one check runs at a time.
#[derive(Debug, Default)]
pub(super) struct Readiness(Mutex<Option<(Instant, Result<(), NotReady>)>>);

impl Readiness {
    /// Returns the last result if it is recent, or else runs `check`. Takes at most [`LIMIT`].
    pub(super) async fn latest(
        &self,
        check: impl Future<Output = Result<(), NotReady>>,
    ) -> Result<(), NotReady> {
        let recent_or_new = async {
            let mut last = self.0.lock().await;
            if let Some((when, result)) = *last
                && when.elapsed() < VALID_FOR
            {
                return result;
            }
            // A little shorter than `LIMIT`: other callers, which wait for the lock meanwhile, get
            // this result before their own limit is over.
            let checked = timeout(LIMIT * 9 / 10, check).await;
            let result = checked.unwrap_or(Err(NotReady::Unreachable));
            *last = Some((Instant::now(), result));
            result
        };
        let in_time = timeout(LIMIT, recent_or_new).await;
        in_time.unwrap_or(Err(NotReady::Unreachable))
    }
}
