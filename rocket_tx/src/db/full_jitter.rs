//! The pauses between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Exponential backoff with full jitter: each wait is a random time in [0, step). So processes that
/// started together do not retry together.
pub(crate) struct FullJitter;

/// The pauses of [`FullJitter`].
pub(crate) type Pauses = std::iter::Map<ExponentialBackoff, fn(Duration) -> Duration>;

impl BackoffBuilder for FullJitter {
    type Backoff = Pauses;

    fn build(self) -> Pauses {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(5))
            .with_max_delay(Duration::from_millis(400))
            .with_max_times(1_000)
            .build()
            .map(|step| step.mul_f64(fastrand::f64()))
    }
}
