//! Repeating work after a conflict: how often, and for how long.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;

use super::failure::Error;
use crate::db::{FullJitter, Pauses};

/// The attempts to do the same work.
pub(in crate::tx) struct Attempts {
    pauses: Pauses,
    /// No attempt begins after this time. `None`: the limit is longer than the clock counts.
    deadline: Option<Instant>,
    made: u32,
}

impl Attempts {
    /// Starts the first attempt.
    pub(in crate::tx) fn within(limit: Duration) -> Self {
        Self {
            pauses: FullJitter::ENDLESS.build(),
            deadline: Instant::now().checked_add(limit),
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
        let deadline = self.deadline;
        let is_early = |pause: &Duration| deadline.is_none_or(|it| Instant::now() + *pause < it);
        let Some(pause) = self.pauses.next().filter(is_early) else {
            tracing::debug!(attempts = self.made, %error, "work was repeated until its limit");
            return Err(error);
        };
        tracing::debug!(attempt = self.made, ?pause, %error, "an attempt met a conflict; the work is begun anew");
        self.made += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job that may wait for an hour is not given up after minutes.
    #[test]
    fn only_the_time_limits_the_attempts() {
        let mut attempts = Attempts::within(Duration::from_secs(60 * 60));
        let waited: Duration = attempts.pauses.by_ref().take(50_000).sum();
        assert!(waited > Duration::from_secs(60 * 60), "{waited:?}");
    }
}
