//! The time limit of a wait.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::LockError;

/// The end of a wait. One deadline covers a whole call: the gate and the row, for all its keys.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    wait: Duration,
}

impl Deadline {
    /// Returns the deadline `wait` from now; `None` is no limit.
    pub(super) fn after(wait: Option<Duration>) -> Self {
        Self {
            // A time beyond the range of `Instant` is no limit either.
            at: wait.and_then(|wait| Instant::now().checked_add(wait)),
            wait: wait.unwrap_or(Duration::MAX),
        }
    }

    /// Returns `true` if the call must not wait: it then takes the key only if the key is free now.
    pub(super) fn is_immediate(&self) -> bool {
        self.wait.is_zero()
    }

    /// Runs `work` until the deadline.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] for `key`.
    pub(crate) async fn timeout<T>(
        &self,
        key: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, LockError> {
        match self.at {
            None => Ok(work.await),
            Some(at) => timeout_at(at, work)
                .await
                .map_err(|_| self.timeout_error(key)),
        }
    }

    pub(super) fn timeout_error(&self, key: &str) -> LockError {
        LockError::TimedOut {
            key: key.to_owned(),
            waited: self.wait,
        }
    }
}
