//! Monitoring of requests: observers, listeners, and the list of what is outstanding now.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `observer` | [`Observer`]: called before and after each step of a settlement |
//! | `feed` | [`Listener`]: the events of requests, as they happen |
//! | `live` | [`Live`]: what is outstanding or condemned in the whole service |
//! | `slow` | the warning about entries that are outstanding for too long |

mod feed;
mod live;
mod observer;
mod slow;

pub(in crate::tx) use feed::micros;
pub use feed::{FeedEvent, FeedEventKind, FeedItem, Listener};
pub use live::{Live, LiveTransaction, PreparedTransaction};
pub(in crate::tx) use live::{LiveEntry, LiveFlags, short_type};
pub(in crate::tx) use observer::Observers;
pub use observer::{Observer, Step};
pub(in crate::tx) use slow::watch as watch_slow;

/// The monitors that the rest of `tx` reports to. Managed by `Settlement`.
#[derive(Clone)]
pub(in crate::tx) struct Monitor {
    pub(in crate::tx) live: Live,
    pub(in crate::tx) observers: Observers,
}

impl Monitor {
    pub(in crate::tx) fn observe(&self, notify: impl Fn(&dyn Observer)) {
        self.observers.notify(notify);
    }
}
