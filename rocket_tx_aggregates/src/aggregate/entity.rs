//! The part that every aggregate has.

use super::error::Error;
use super::event::EventRecord;
use super::stream::HeldLease;

/// Id, version and new events of an aggregate; and its lease, if it was loaded with one.
///
/// Keep it in a field that serde skips: snapshots hold the state alone.
///
/// # Drop
///
/// Releases the lease, unless what it protects is staged in a request: then the request does. A
/// clone has no lease.
#[derive(Default)]
pub struct Entity {
    id: String,
    /// The sequence of the last event, stored or new.
    version: u64,
    new_events: Vec<EventRecord>,
    pub(super) lease: Option<HeldLease>,
}

impl Clone for Entity {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            version: self.version,
            new_events: self.new_events.clone(),
            lease: None,
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
    /// Of an aggregate to which nothing has happened yet.
    ///
    /// # Errors
    ///
    /// [`Error::Id`]: an id has 1 to 200 bytes and no control characters.
    pub fn new(id: &str) -> Result<Self, Error> {
        Ok(Self::at(check_id(id)?, 0))
    }

    /// Of an aggregate to which so many stored events have happened.
    pub(super) fn at(id: &str, version: u64) -> Self {
        Self {
            id: id.to_owned(),
            version,
            new_events: Vec::new(),
            lease: None,
        }
    }

    /// The id, without the aggregate's type.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many events have happened to it, the new ones included.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The events since it was loaded or committed.
    pub fn new_events(&self) -> &[EventRecord] {
        &self.new_events
    }

    /// Whether it owns the lease of its key.
    pub fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// How many events are stored, or staged.
    pub(super) fn committed_version(&self) -> u64 {
        self.version - self.new_events.len() as u64
    }

    pub(super) fn push(&mut self, event: EventRecord) {
        self.version = event.sequence;
        self.new_events.push(event);
    }

    /// One more stored event has happened to it.
    pub(super) fn replayed(&mut self, sequence: u64) {
        self.version = sequence;
    }

    /// They are stored, or staged, now.
    pub(super) fn committed(&mut self) {
        self.new_events.clear();
    }
}

/// # Errors
///
/// [`Error::Id`].
pub(super) fn check_id(id: &str) -> Result<&str, Error> {
    if id.is_empty() || id.len() > 200 || id.chars().any(char::is_control) {
        return Err(Error::Id);
    }
    Ok(id)
}
