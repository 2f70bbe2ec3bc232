//! Futures that are dropped before they complete.

use std::task::{Context, Waker};
use std::time::Duration;

/// Polls `future` until it is ready or has been pending `polls` times, then drops it. Returns
/// `true` if it was ready.
pub async fn dropped_after(polls: usize, future: impl Future) -> bool {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        let polled = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        if polled.is_ready() {
            return true;
        }
        // Gives the work that the future has started some time to proceed.
        rocket::tokio::time::sleep(Duration::from_micros(200)).await;
    }
    false
}
