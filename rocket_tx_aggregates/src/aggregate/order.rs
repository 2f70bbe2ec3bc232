//! The keys that a request holds, in all databases.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;

/// Kept in Rocket's request-local cache.
///
/// Waits that all go one way never meet in a circle: a request waits only for keys that come after
/// all that it holds, and takes one at a time.
#[derive(Default)]
pub(super) struct Order {
    /// Held across a wait on purpose: a request has one connection of a database at most, and two
    /// tasks of it read in turn.
    pub(super) reading: Turn<()>,
    /// With the rank of their database.
    keys: Mutex<BTreeSet<(usize, String)>>,
}

impl Order {
    pub(super) fn insert(&self, rank: usize, stream: &str) {
        self.keys.lock().insert((rank, stream.to_owned()));
    }

    pub(super) fn remove(&self, rank: usize, stream: &str) {
        self.keys.lock().remove(&(rank, stream.to_owned()));
    }

    /// Whether a key comes after all that the request holds.
    pub(super) fn is_next(&self, rank: usize, stream: &str) -> bool {
        let keys = self.keys.lock();
        let last = keys.last();
        last.is_none_or(|(of, last)| (*of, last.as_str()) < (rank, stream))
    }
}
