//! The part of a COMMIT that may come after it: the wait until it survives a power cut.

use std::future::Future;
use std::pin::Pin;
use std::{fmt, io};

use super::CommitError;

/// The rest of a COMMIT that has succeeded: the wait until it is durable, that is, until it
/// survives a power cut.
///
/// It keeps no connection. Postgres owes nothing once it has answered COMMIT; SQLite owes a sync of
/// its journal, which serves all commits before it. Nothing may be told as committed before
/// [`wait`](Self::wait) has returned.
///
/// Dropping it takes nothing back: the transaction stays committed, and becomes durable sooner or
/// later, or not at all.
#[must_use = "a commit may be told only after it is durable"]
pub struct Durability(Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>);

impl Durability {
    /// Nothing is left to wait for, or nobody wants to.
    pub fn reached() -> Self {
        Self(None)
    }

    /// `sync` ends when the commit is durable.
    pub fn after(sync: impl Future<Output = io::Result<()>> + Send + 'static) -> Self {
        Self(Some(Box::pin(sync)))
    }

    /// Whether there is nothing to wait for.
    pub fn is_reached(&self) -> bool {
        self.0.is_none()
    }

    /// Waits until the commit is durable.
    ///
    /// # Errors
    ///
    /// [`CommitError::NotDurable`]: the disk failed. Nobody can say what a restart will find.
    ///
    /// # Cancellation
    ///
    /// Dropping the future stops nothing; whether the commit is durable is unknown then.
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
