//! How scenes are run.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// How many schedules of each kind.
const TIMES: usize = 1_000;

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 0x2_0000;
    config
}

/// Runs a scene under schedules drawn at random, and under those that preempt seldom but badly.
pub fn everywhere<F: Future<Output = ()> + 'static>(scene: fn() -> F) {
    at_random(scene);
    Runner::new(PctScheduler::new(3, TIMES), config()).run(move || block_on(scene()));
}

/// Runs a scene under schedules drawn at random: for one with a task that never waits, and would
/// leave no step to others if it came first.
pub fn at_random<F: Future<Output = ()> + 'static>(scene: fn() -> F) {
    Runner::new(RandomScheduler::new(TIMES), config()).run(move || block_on(scene()));
}

/// Polls a future until it is ready or has been pending so often, then drops it: what a client that
/// goes away and a timeout do. `None` is to its end.
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
            // Or nothing would poll it again while it waits.
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}
