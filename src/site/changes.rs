//! `/changes`: tells the pages after each commit which lists have changed.

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

/// The feed of changes. A clone is another handle to the same.
#[derive(Clone)]
pub(crate) struct Changes(Sender<List>);

/// A list that a page may show, by the first part of its address.
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
        /// A page that falls behind reloads all lists.
        const BACKLOG: usize = 16;

        Self(Sender::new(BACKLOG))
    }
}

impl Observer for Changes {
    fn settled(&self, request: &Request<'_>, settled: &SettlementReport) {
        // With an unknown outcome, something may have changed too.
        if request.method() != Method::Get && settled.outcome != Outcome::RolledBack {
            // It fails while there is no client.
            let _ = List::of(request).map(|list| self.0.send(list));
        }
    }
}

/// Server-sent events `changed`, each with the name of a list, until the client goes or the service
/// shuts down. Changes by other processes are not reported.
#[utoipa::path(responses(
    (status = 200, description = "Without an end.", body = String, content_type = "text/event-stream")
))]
#[get("/changes")]
fn changes(changes: &State<Changes>, mut shutdown: Shutdown) -> EventStream![] {
    /// The service notices that a client is gone when it next writes to it.
    const HEARTBEAT: Duration = Duration::from_secs(5);
    /// How soon a browser reconnects.
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
