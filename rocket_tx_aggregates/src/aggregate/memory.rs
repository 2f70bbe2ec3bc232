//! An event store in memory, for unit tests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::error::AggregateError;
use super::event::EventRecord;
use super::repository::AsyncRepository;
use super::store::EventStore;
use super::stream::{Append, History, Snapshot};
use crate::lock::{Fence, ReleaseOutcome};

/// An event store in memory. Its streams end with the process.
///
/// It keeps the promises of [`SqlEventStore`](super::SqlEventStore), but has no database and no
/// read models. A clone is another handle on the same streams.
#[derive(Clone, Default)]
pub struct InMemoryEventStore {
    streams: Arc<Mutex<HashMap<String, Stream>>>,
    snapshot_every: u64,
}

#[derive(Default)]
struct Stream {
    events: Vec<EventRecord>,
    snapshot: Option<Snapshot>,
}

impl InMemoryEventStore {
    /// Creates an empty store that takes no snapshots.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of events between snapshots; 0 means no snapshots.
    pub fn with_snapshot_every(mut self, events: u64) -> Self {
        self.snapshot_every = events;
        self
    }

    fn add(&self, batch: &[Append]) -> Result<(), AggregateError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let mut streams = self.streams.lock();
        let mut lengths = HashMap::new();
        for append in batch {
            let stored = streams.get(&append.stream);
            let stored = stored.map_or(0, |stream| stream.events.len() as u64);
            let length = lengths.entry(&append.stream).or_insert(stored);
            if append.after != *length && !append.events.is_empty() {
                return Err(AggregateError::Conflict(append.stream.clone()));
            }
            *length += append.events.len() as u64;
        }
        for append in batch {
            let stream = streams.entry(append.stream.clone()).or_default();
            stream.events.extend(append.events.iter().map(|event| {
                let mut event = event.clone();
                event.recorded_at = Some(now);
                event
            }));
            if append.snapshot.is_some() {
                stream.snapshot.clone_from(&append.snapshot);
            }
        }
        Ok(())
    }
}

impl AsyncRepository for InMemoryEventStore {
    async fn load(
        &self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> Result<History, AggregateError> {
        let streams = self.streams.lock();
        let Some(stream) = streams.get(stream) else {
            return Ok(History::default());
        };
        let snapshot = stream
            .snapshot
            .clone()
            .filter(|snapshot| Some(snapshot.version) == snapshot_version);
        let after = snapshot.as_ref().map_or(0, |snapshot| snapshot.sequence);
        let later = |event: &&EventRecord| event.sequence > after;
        Ok(History {
            snapshot,
            events: stream.events.iter().filter(later).cloned().collect(),
        })
    }

    async fn append(&self, batch: Vec<Append>) -> Result<(), AggregateError> {
        self.add(&batch)
    }

    async fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, AggregateError> {
        let streams = self.streams.lock();
        let events = streams.get(stream).map_or(&[][..], |stream| &stream.events);
        let page = events.iter().filter(|event| event.sequence > after);
        Ok(page.take(limit as usize).cloned().collect())
    }

    fn snapshot_every(&self) -> u64 {
        self.snapshot_every
    }
}

impl EventStore for InMemoryEventStore {
    async fn append_fenced(
        &self,
        batch: Vec<Append>,
        fences: &[Fence],
    ) -> Result<Vec<Option<ReleaseOutcome>>, AggregateError> {
        self.add(&batch)?;
        Ok(fences.iter().map(|_| None).collect())
    }
}
