//! The pauses between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Exponential backoff with full jitter: each wait is a random time in [0, step). So processes that
/// started together do not retry together.
pub(crate) struct FullJitter {
    most: Option<usize>,
}

impl FullJitter {
    /// As many pauses as fit into the caller's own limit of time.
    pub(crate) const ENDLESS: Self = Self { most: None };

    /// Returns at most `most` pauses.
    #[cfg(feature = "sqlite")]
    pub(crate) const fn at_most(most: usize) -> Self {
        Self { most: Some(most) }
    }
}

/// The pauses of [`FullJitter`].
pub(crate) type Pauses = std::iter::Map<ExponentialBackoff, fn(Duration) -> Duration>;

impl BackoffBuilder for FullJitter {
    type Backoff = Pauses;

    fn build(self) -> Pauses {
        let steps = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(5))
            .with_max_delay(Duration::from_millis(400));
        let steps = match self.most {
            Some(most) => steps.with_max_times(most),
            None => steps.without_max_times(),
        };
        steps.build().map(|step| step.mul_f64(fastrand::f64()))
    }
}
