//! Running scenarios.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// The number of schedules for each scheduler.
const TIMES: usize = 1_000;

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 0x2_0000;
    config
}

/// Runs a scenario under random schedules, and under PCT schedules, which preempt a task rarely but
/// at unfavourable points.
pub fn with_all_schedulers<F: Future<Output = ()> + 'static>(scenario: fn() -> F) {
    with_random_scheduler(scenario);
    Runner::new(PctScheduler::new(3, TIMES), config()).run(move || block_on(scenario()));
}

/// Runs a scenario under random schedules only. For scenarios with a task that never blocks: under
/// a PCT schedule this task may have the highest priority, and then no other task runs.
pub fn with_random_scheduler<F: Future<Output = ()> + 'static>(scenario: fn() -> F) {
    Runner::new(RandomScheduler::new(TIMES), config()).run(move || block_on(scenario()));
}

/// Polls a future until it is ready, or drops it after `times` + 1 polls, as a timeout or a client
/// that disconnects would. With `None`, runs the future to its end.
pub async fn dropped_after<F: Future>(times: Option<usize>, future: F) -> Option<F::Output> {
    let Some(mut left) = times else {
        return Some(future.await);
    };
    let mut future = pin!(future);
    poll_fn(move |context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            // Without this, nothing would poll the future again while it waits.
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}
