//! The wait after a COMMIT until the commit survives a power cut.

use std::future::Future;
use std::pin::Pin;
use std::{fmt, io};

use super::CommitError;

/// The wait until a successful COMMIT is durable, that is, until it survives a power cut.
///
/// Do not report the commit to a client before [`wait`](Self::wait) has returned. The wait needs no
/// connection. On Postgres there is nothing to wait for once the server has replied to COMMIT. On
/// SQLite a commit still needs a sync of the write-ahead log; one sync covers all commits before
/// it.
///
/// Dropping a `Durability` does not undo the commit. The transaction remains committed, but it is
/// unknown when it becomes durable, or whether it does.
#[must_use = "await `wait()` before the commit is reported to a client"]
pub struct Durability(Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>);

impl Durability {
    /// Creates a `Durability` without a wait: the commit is durable already, or does not have to
    /// be.
    pub fn reached() -> Self {
        Self(None)
    }

    /// Creates a `Durability` that waits for `sync`. `sync` must return `Ok` only when the commit
    /// is durable.
    pub fn after(sync: impl Future<Output = io::Result<()>> + Send + 'static) -> Self {
        Self(Some(Box::pin(sync)))
    }

    /// Returns `true` if there is nothing to wait for.
    pub fn is_reached(&self) -> bool {
        self.0.is_none()
    }

    /// Waits until the commit is durable.
    ///
    /// # Errors
    ///
    /// [`CommitError::NotDurable`] if the sync failed. It is unknown whether the commit will still
    /// exist after a restart.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the sync. Whether the commit is durable is then unknown.
    pub async fn wait(self) -> Result<(), CommitError> {
        match self.0 {
            None => Ok(()),
            Some(sync) => sync.await.map_err(CommitError::NotDurable),
        }
    }
}

impl fmt::Debug for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_reached() {
            "reached"
        } else {
            "under way"
        })
    }
}
