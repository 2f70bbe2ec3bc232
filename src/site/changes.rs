//! `/changes`: a feed that tells the pages which lists have changed.

use std::time::Duration;

use rocket::http::Method;
use rocket::response::stream::{Event, EventStream};
use rocket::tokio::select;
use rocket::tokio::sync::broadcast::Sender;
use rocket::tokio::sync::broadcast::error::RecvError;
use rocket::{Request, Shutdown, State, get};
use rocket_tx::tx::{Observer, Outcome, SettlementReport};

use crate::http::{Endpoints, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("changes": changes)
}

/// The feed of changes. Clones share the same feed.
#[derive(Clone)]
pub(crate) struct Changes(Sender<List>);

/// A list that a page may show. The first segment of the request's path selects it.
#[derive(Clone, Copy)]
enum List {
    Todos,
    Aggregates,
}

impl List {
    fn of(request: &Request<'_>) -> Option<Self> {
        match request.uri().path().segments().next()? {
            "todos" => Some(Self::Todos),
            "aggregates" => Some(Self::Aggregates),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Todos => "todos",
            Self::Aggregates => "aggregates",
        }
    }
}

impl Default for Changes {
    fn default() -> Self {
        /// The number of changes that are kept for a slow client. If it falls further behind, it
        /// receives an event for every list, so that it reloads all of them.
        const BACKLOG: usize = 16;

        Self(Sender::new(BACKLOG))
    }
}

impl Observer for Changes {
    fn settled(&self, request: &Request<'_>, settled: &SettlementReport) {
        // The outcomes unknown and partial may have changed something too.
        if request.method() != Method::Get && settled.outcome != Outcome::RolledBack {
            // Sending fails if there is no client.
            let _ = List::of(request).map(|list| self.0.send(list));
        }
    }
}

/// Reports which lists have changed, as server-sent events.
///
/// Each event `changed` carries the name of a list: `todos` or `aggregates`. The stream lasts until
/// the client disconnects or the service shuts down. Changes by other processes are not reported.
#[utoipa::path(responses(
    (status = 200, description = "A stream that stays open.", body = String, content_type = "text/event-stream")
))]
#[get("/changes")]
fn changes(changes: &State<Changes>, mut shutdown: Shutdown) -> EventStream![] {
    /// The service detects that a client has disconnected only when it writes to the client.
    const HEARTBEAT: Duration = Duration::from_secs(5);
    /// The time after which a browser reconnects.
    const RETRY: Duration = Duration::from_secs(1);

    let mut changed = changes.0.subscribe();
    let stream = EventStream! {
        yield Event::retry(RETRY);
        loop {
            let lists = select! {
                list = changed.recv() => match list {
                    Ok(list) => vec![list],
                    Err(RecvError::Lagged(_)) => vec![List::Todos, List::Aggregates],
                    Err(RecvError::Closed) => break,
                },
                () = &mut shutdown => break,
            };
            for list in lists {
                yield Event::data(list.name()).event("changed");
            }
        }
    };
    stream.heartbeat(HEARTBEAT)
}
