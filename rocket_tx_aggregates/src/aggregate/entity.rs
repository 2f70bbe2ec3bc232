//! [`Entity`]: the id, version and new events that every aggregate has.

use super::error::AggregateError;
use super::event::EventRecord;
use super::stream::{HeldLease, OnDiscard};

/// The id, version and new events of an aggregate, and its lease if it was loaded with one.
///
/// Keep it in a field that serde skips: a snapshot contains only the state.
///
/// # Drop
///
/// Dropping an entity releases its lease, unless its request still needs the lease: because events
/// of the aggregate are staged or flushed, or because the request has a connection. Then settlement
/// releases the lease. A clone has no lease.
#[derive(Default)]
pub struct Entity {
    id: String,
    /// The sequence of the last event, including new events.
    version: u64,
    new_events: Vec<EventRecord>,
    pub(super) lease: Option<HeldLease>,
    /// Called if the entity is dropped with new events. Unlike the lease, it stays after a commit.
    on_discard: Option<OnDiscard>,
}

impl Drop for Entity {
    fn drop(&mut self) {
        if let (Some(on_discard), false) = (&self.on_discard, self.new_events.is_empty()) {
            on_discard(self.new_events.len());
        }
    }
}

impl Clone for Entity {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            version: self.version,
            new_events: self.new_events.clone(),
            lease: None,
            on_discard: None,
        }
    }
}

impl std::fmt::Debug for Entity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entity")
            .field("id", &self.id)
            .field("version", &self.version)
            .field("new_events", &self.new_events.len())
            .field("leased", &self.is_leased())
            .finish()
    }
}

impl Entity {
    /// Returns the entity of an aggregate without events.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Id`] unless the id has 1 to 200 bytes and no control characters.
    pub fn new(id: &str) -> Result<Self, AggregateError> {
        Ok(Self::at(check_id(id)?, 0))
    }

    /// Returns the entity of an aggregate with `version` stored events and no new ones.
    pub(super) fn at(id: &str, version: u64) -> Self {
        Self {
            id: id.to_owned(),
            version,
            new_events: Vec::new(),
            lease: None,
            on_discard: None,
        }
    }

    /// Returns the id, without the aggregate's type.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the number of events of the aggregate, including new ones.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the events recorded since the aggregate was loaded or last committed.
    pub fn new_events(&self) -> &[EventRecord] {
        &self.new_events
    }

    /// Returns whether the entity owns the lease of its stream.
    pub fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// Gives the entity the lease of its stream.
    pub(super) fn hold(&mut self, lease: Option<HeldLease>) {
        self.on_discard = lease.as_ref().and_then(|lease| lease.on_discard.clone());
        self.lease = lease;
    }

    /// Takes out the lease, because the aggregate and its new events are to be discarded.
    pub(super) fn discard(&mut self) -> Option<HeldLease> {
        self.on_discard = None;
        self.lease.take()
    }

    /// Returns the number of events that are stored or staged.
    pub(super) fn committed_version(&self) -> u64 {
        self.version - self.new_events.len() as u64
    }

    pub(super) fn push(&mut self, event: EventRecord) {
        self.version = event.sequence;
        self.new_events.push(event);
    }

    /// Marks that a stored event was applied.
    pub(super) fn replayed(&mut self, sequence: u64) {
        self.version = sequence;
    }

    /// Forgets the new events, because they are stored or staged now.
    pub(super) fn committed(&mut self) {
        self.new_events.clear();
    }
}

/// Returns `id` if it is valid.
///
/// # Errors
///
/// [`AggregateError::Id`].
pub(super) fn check_id(id: &str) -> Result<&str, AggregateError> {
    if id.is_empty() || id.len() > 200 || id.chars().any(char::is_control) {
        return Err(AggregateError::Id);
    }
    Ok(id)
}
