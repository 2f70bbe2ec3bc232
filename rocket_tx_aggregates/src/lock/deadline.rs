//! How long to wait.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::LockError;

/// When a wait is to end, counted from entry: gate and row, and all keys of one call, together.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    wait: Duration,
}

impl Deadline {
    /// `None` is for ever.
    pub(super) fn after(wait: Option<Duration>) -> Self {
        Self {
            // Past what a clock can count is for ever too.
            at: wait.and_then(|wait| Instant::now().checked_add(wait)),
            wait: wait.unwrap_or(Duration::MAX),
        }
    }

    /// There is no waiting at all: what is free is taken.
    pub(super) fn is_immediate(&self) -> bool {
        self.wait.is_zero()
    }

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
