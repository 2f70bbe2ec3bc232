//! The feed: live events about the transactions of requests, for subscribers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::tx::request_id::RequestId;
use crate::tx::verdict::{Action, Outcome};

/// How many events a listener may lag behind before it loses events.
const BACKLOG: usize = 1_024;

/// An event of a request.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FeedEvent {
    /// The id of the request.
    #[serde(serialize_with = "as_text")]
    pub request: RequestId,
    /// Microseconds since the launch.
    pub at_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: FeedEventKind,
}

/// The kinds of events.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FeedEventKind {
    /// A transaction has begun, or a resource has joined.
    Began {
        /// The database, or the name that the resource gives itself.
        resource: Cow<'static, str>,
        /// The type of the guard, or of the resource that joined.
        guard: String,
        /// The name of the route, if the route has one.
        route: Option<Cow<'static, str>>,
    },
    /// A guard has checked the transaction out.
    CheckedOut {
        /// The database.
        resource: Cow<'static, str>,
    },
    /// A guard was dropped, and the transaction is checked in.
    CheckedIn {
        /// The database.
        resource: Cow<'static, str>,
    },
    /// The verdict was reached.
    Verdict {
        /// `true` for a commit, `false` for a rollback.
        commit: bool,
        /// The reason for the verdict.
        reason: String,
    },
    /// A step of the settlement has ended.
    Step {
        /// The database, or the name that the resource gives itself.
        resource: String,
        /// What was done.
        action: Action,
        /// If the step failed: the description of the error that a client would receive.
        failed: Option<String>,
        /// The duration of the step in microseconds.
        took_us: u64,
    },
    /// The request is settled, and the response is about to leave.
    Settled {
        /// What really happened.
        outcome: Outcome,
        /// The status that the client receives.
        status: u16,
        /// The duration of the settlement in microseconds.
        took_us: u64,
    },
    /// An event that the service itself published.
    Note {
        /// The topic, named by the publisher.
        #[serde(rename = "about")]
        topic: Cow<'static, str>,
        /// The data of the event.
        #[serde(rename = "says")]
        data: rocket::serde::json::Value,
    },
}

fn as_text<S: Serializer>(id: &RequestId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Returns `duration` in whole microseconds.
pub(in crate::tx) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Sends events to all listeners. Without listeners, an event costs one read of a counter. Sending
/// never waits for a slow listener.
pub(super) struct Feed {
    sender: broadcast::Sender<Arc<FeedEvent>>,
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
    fn has_listeners(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    pub(super) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    pub(in crate::tx) fn emit(&self, request: RequestId, kind: impl FnOnce() -> FeedEventKind) {
        if self.has_listeners() {
            let event = FeedEvent {
                request,
                at_us: micros(self.launched.elapsed()),
                kind: kind(),
            };
            // Fails if the last listener has been dropped in the meantime.
            let _ = self.sender.send(Arc::new(event));
        }
    }

    pub(super) fn listen(&self) -> Listener {
        Listener(self.sender.subscribe())
    }
}

/// A subscription to all events, from its creation on. Dropping the listener ends the subscription.
pub struct Listener(broadcast::Receiver<Arc<FeedEvent>>);

/// What a listener receives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FeedItem {
    /// The next event.
    Event(Arc<FeedEvent>),
    /// The listener was too slow: it has lost this number of events.
    Lagged(u64),
}

impl Listener {
    /// Returns the next item. Returns `None` when there can be no more events.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<FeedItem> {
        match self.0.recv().await {
            Ok(event) => Some(FeedItem::Event(event)),
            Err(RecvError::Lagged(missed)) => Some(FeedItem::Lagged(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}
