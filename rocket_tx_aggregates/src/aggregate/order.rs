//! The keys that a request has leased, in all databases.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

/// The leased keys of one request. Kept in Rocket's request-local cache.
///
/// A request waits for one key at a time, and only for a key that sorts after all keys it holds. All
/// requests then wait in the same direction, so they cannot deadlock.
#[derive(Default)]
pub(super) struct Order {
    /// Locked by a task of the request while it reads, across an `await` on purpose. A request has
    /// at most one connection of a database, so its tasks read one after another.
    pub(super) reading: AsyncMutex<()>,
    /// The keys, each with the rank of its database: its place in the order of attachment.
    keys: Mutex<BTreeSet<(usize, String)>>,
}

impl Order {
    pub(super) fn insert(&self, rank: usize, stream: &str) {
        self.keys.lock().insert((rank, stream.to_owned()));
    }

    pub(super) fn remove(&self, rank: usize, stream: &str) {
        self.keys.lock().remove(&(rank, stream.to_owned()));
    }

    /// Returns whether `stream` sorts after all keys that the request holds.
    pub(super) fn is_next(&self, rank: usize, stream: &str) -> bool {
        let keys = self.keys.lock();
        let last = keys.last();
        last.is_none_or(|(of, last)| (*of, last.as_str()) < (rank, stream))
    }
}
