//! Warning of what is outstanding for long, while it is: what hangs for ever is never settled.

use std::time::Duration;

use rocket::Shutdown;
use tokio::select;
use tokio::time::{MissedTickBehavior, interval};

use super::live::Live;

/// Warns once of each line that is older than `limit`, until the service shuts down.
pub(in crate::tx) async fn watch(live: Live, limit: Duration, mut shutdown: Shutdown) {
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    let mut tick = interval((limit / 4).clamp(SHORTEST, LONGEST));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            _ = tick.tick() => live.overdue(limit).iter().for_each(|line| {
                tracing::warn!(
                    request = line.request, route = line.route.as_deref().unwrap_or("-"),
                    guard = line.guard, resource = line.resource, age_ms = line.age_ms,
                    checked_out = line.checked_out, condemned = line.condemned,
                    "outstanding for longer than `slow_transaction`, and still is"
                );
            }),
            () = &mut shutdown => return,
        }
    }
}
