//! Streams: the values that are read and added, and the lease.

use std::any::Any;
use std::sync::Arc;

use super::event::EventRecord;

/// A lease that a loaded aggregate owns, of a type that its repository knows. When the last clone
/// is dropped, the lease is released.
#[derive(Clone)]
pub struct HeldLease(Arc<dyn Any + Send + Sync>);

impl HeldLease {
    /// Makes one of whatever releases the lease when it is dropped.
    pub fn new<T: Any + Send + Sync>(lease: Arc<T>) -> Self {
        Self(lease)
    }

    /// The value that it was made of.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.0).downcast().ok()
    }
}

/// The state of an aggregate after some of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last event that is in it.
    pub sequence: u64,
    /// [`Aggregate::SNAPSHOT_VERSION`](super::Aggregate::SNAPSHOT_VERSION).
    pub version: u32,
    /// The state, as JSON.
    pub state: String,
}

/// A stream as it was read: a snapshot, if any, and the events after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The state that the events come after.
    pub snapshot: Option<Snapshot>,
    /// In order.
    pub events: Vec<EventRecord>,
}

/// Events to be added to one stream.
#[derive(Clone)]
pub struct Append {
    /// The stream.
    pub stream: String,
    /// The sequence of the last event that the change was made on.
    pub after: u64,
    /// The events, with the sequences that follow.
    pub events: Vec<EventRecord>,
    /// The state after them, if one is due.
    pub snapshot: Option<Snapshot>,
    /// The aggregate after them, for read models.
    pub aggregate: Arc<dyn Any + Send + Sync>,
    /// The lease that it was loaded with.
    pub lease: Option<HeldLease>,
}

impl Append {
    /// The sequence of its last event.
    pub(super) fn last(&self) -> u64 {
        self.after + self.events.len() as u64
    }

    /// Takes in what comes right after it.
    pub(super) fn extend(&mut self, next: Self) {
        self.events.extend(next.events);
        self.aggregate = next.aggregate;
        if next.snapshot.is_some() {
            self.snapshot = next.snapshot;
        }
    }
}
