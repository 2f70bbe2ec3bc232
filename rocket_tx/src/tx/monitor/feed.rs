//! What happens to requests' transactions, as it happens, for whoever listens.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::tx::request_id::RequestId;
use crate::tx::verdict::{Action, Outcome};

/// How many events a slow listener may fall behind before it misses some.
const BACKLOG: usize = 1_024;

/// Something that happened to a request.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// The request.
    #[serde(serialize_with = "as_text")]
    pub request: RequestId,
    /// Microseconds since the launch.
    pub at_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen to a request.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A transaction has begun, or a resource has joined.
    Began {
        /// The database, or the name that the resource gives itself.
        resource: Cow<'static, str>,
        /// The type of the guard.
        guard: String,
        /// The name of the route.
        route: Option<Cow<'static, str>>,
    },
    /// A guard holds the connection now.
    CheckedOut {
        /// The database.
        resource: Cow<'static, str>,
    },
    /// The guard was dropped.
    CheckedIn {
        /// The database.
        resource: Cow<'static, str>,
    },
    /// It is decided what is to be done.
    Verdict {
        /// Whether everything is to be committed.
        commit: bool,
        /// Why.
        reason: String,
    },
    /// A step of the settlement.
    Step {
        /// On which resource.
        resource: String,
        /// What was done.
        action: Action,
        /// Why it failed, if it did: as the client is told.
        failed: Option<String>,
        /// How long it took, in microseconds.
        took_us: u64,
    },
    /// The response is about to leave.
    Settled {
        /// What really happened.
        outcome: Outcome,
        /// What the client is told.
        status: u16,
        /// How long settling took, in microseconds.
        took_us: u64,
    },
    /// Something that the service itself tells.
    Note {
        /// The topic, as the publisher calls it.
        #[serde(rename = "about")]
        topic: Cow<'static, str>,
        /// Data of the topic.
        #[serde(rename = "says")]
        data: rocket::serde::json::Value,
    },
}

fn as_text<S: Serializer>(id: &RequestId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Whole microseconds.
pub(in crate::tx) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Where events go. Costs one look at a counter when nobody listens, and never waits for those who
/// do.
pub(super) struct Feed {
    sender: broadcast::Sender<Arc<Event>>,
    launched: Instant,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            launched: Instant::now(),
        }
    }
}

impl Feed {
    pub(super) fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    pub(super) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    pub(in crate::tx) fn emit(&self, request: RequestId, kind: impl FnOnce() -> EventKind) {
        if self.is_heard() {
            let event = Event {
                request,
                at_us: micros(self.launched.elapsed()),
                kind: kind(),
            };
            // The last listener may just have gone.
            let _ = self.sender.send(Arc::new(event));
        }
    }

    pub(super) fn listen(&self) -> Listener {
        Listener(self.sender.subscribe())
    }
}

/// Hears every event from when it was made. Dropping it ends that.
pub struct Listener(broadcast::Receiver<Arc<Event>>);

/// What a listener hears.
#[derive(Debug, Clone)]
pub enum FeedItem {
    /// The next event.
    Event(Arc<Event>),
    /// It was too slow: so many events went by unheard.
    Lagged(u64),
}

impl Listener {
    /// The next event; `None` when there will be none any more.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<FeedItem> {
        match self.0.recv().await {
            Ok(event) => Some(FeedItem::Event(event)),
            Err(RecvError::Lagged(missed)) => Some(FeedItem::Lagged(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}
