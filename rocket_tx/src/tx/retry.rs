//! Repeating work after a conflict: how often, and for how long.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;

use super::failure::Error;
use crate::db::{FullJitter, Pauses};

/// The attempts to do the same work.
pub(in crate::tx) struct Attempts {
    pauses: Pauses,
    /// No attempt begins after this time.
    deadline: Instant,
    made: u32,
}

impl Attempts {
    /// Starts the first attempt.
    pub(in crate::tx) fn within(limit: Duration) -> Self {
        Self {
            pauses: FullJitter.build(),
            deadline: Instant::now() + limit,
            made: 1,
        }
    }

    /// Waits until the next attempt may begin.
    ///
    /// # Errors
    ///
    /// `error`, if it is not a conflict, or if the next attempt would begin after the deadline.
    pub(in crate::tx) async fn wait_after(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_conflict() {
            return Err(error);
        }
        let pause = self.pauses.next();
        let next = pause.filter(|pause| Instant::now() + *pause < self.deadline);
        let Some(pause) = next else {
            tracing::debug!(attempts = self.made, %error, "work was repeated until its limit");
            return Err(error);
        };
        tracing::debug!(attempt = self.made, ?pause, %error, "an attempt met a conflict; the work is begun anew");
        self.made += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
