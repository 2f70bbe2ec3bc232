//! Streams: the values that are read from them and appended to them, and their leases.

use std::any::Any;
use std::sync::Arc;

use super::event::EventRecord;

/// The lease of a loaded aggregate. Only the repository knows its concrete type.
///
/// # Drop
///
/// Dropping the last clone releases the lease.
#[derive(Clone)]
pub struct HeldLease {
    lease: Arc<dyn Any + Send + Sync>,
    pub(super) on_discard: Option<OnDiscard>,
}

impl HeldLease {
    /// Wraps a value that releases the lease when it is dropped.
    pub fn new<T: Any + Send + Sync>(lease: Arc<T>) -> Self {
        Self {
            lease,
            on_discard: None,
        }
    }

    /// Calls `on_discard` if the aggregate is dropped with new events that were not committed, with
    /// their number, also after an earlier commit.
    pub fn on_discard(mut self, on_discard: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_discard = Some(Arc::new(on_discard));
        self
    }

    /// Returns the wrapped value, if it is a `T`.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.lease).downcast().ok()
    }
}

/// Called with the number of events that were recorded and not committed.
pub(super) type OnDiscard = Arc<dyn Fn(usize) + Send + Sync>;

/// The state of an aggregate after some of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The sequence of the last event in the state.
    pub sequence: u64,
    /// [`Aggregate::SNAPSHOT_VERSION`](super::Aggregate::SNAPSHOT_VERSION).
    pub version: u32,
    /// The state, as JSON.
    pub state: String,
}

/// A stream as it was read: a snapshot, if any, and the events after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The state before the events.
    pub snapshot: Option<Snapshot>,
    /// The events after the snapshot, or all events if there is no snapshot; in order.
    pub events: Vec<EventRecord>,
}

/// Events to append to one stream.
#[derive(Clone)]
pub struct Append {
    /// The name of the stream.
    pub stream: String,
    /// The sequence of the last event before the new ones. If the stream has a later event, the
    /// append is a conflict.
    pub after: u64,
    /// The new events. Their sequences continue from `after`.
    pub events: Vec<EventRecord>,
    /// A snapshot of the state after the new events, if one is due.
    pub snapshot: Option<Snapshot>,
    /// The aggregate after the new events, for read models.
    pub aggregate: Arc<dyn Any + Send + Sync>,
    /// The lease that the aggregate was loaded with.
    pub lease: Option<HeldLease>,
}

impl Append {
    /// Returns the sequence of the last new event.
    pub(super) fn last(&self) -> u64 {
        self.after + self.events.len() as u64
    }

    /// Adds the events of `next`, which directly follow these.
    pub(super) fn extend(&mut self, next: Self) {
        self.events.extend(next.events);
        self.aggregate = next.aggregate;
        if next.snapshot.is_some() {
            self.snapshot = next.snapshot;
        }
    }
}
