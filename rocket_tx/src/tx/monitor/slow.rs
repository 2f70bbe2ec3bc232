//! The warning about entries that are outstanding for too long.
//!
//! Settlement warns about slow transactions too, but a request that hangs is never settled.

use std::time::Duration;

use rocket::Shutdown;
use tokio::select;
use tokio::time::{MissedTickBehavior, interval};

use super::live::Live;

/// Warns once about each entry of the live list that is older than `limit`, until shutdown.
pub(in crate::tx) async fn watch(live: Live, limit: Duration, mut shutdown: Shutdown) {
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    let mut tick = interval((limit / 4).clamp(SHORTEST, LONGEST));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            _ = tick.tick() => live.overdue(limit).iter().for_each(|entry| {
                tracing::warn!(
                    request = entry.request, route = entry.route.as_deref().unwrap_or("-"),
                    guard = entry.guard, resource = entry.resource, age_ms = entry.age_ms,
                    checked_out = entry.checked_out, condemned = entry.condemned,
                    "a transaction or resource is still outstanding after `slow_transaction`; check what \
                     its request waits for"
                );
            }),
            () = &mut shutdown => return,
        }
    }
}
