//! `/changes`: which lists have changed, told after the commit to every page that shows one.

use std::time::Duration;

use rocket::http::Method;
use rocket::response::stream::{Event, EventStream};
use rocket::tokio::select;
use rocket::tokio::sync::broadcast::Sender;
use rocket::tokio::sync::broadcast::error::RecvError;
use rocket::{Request, Route, Shutdown, State, get, routes};

use crate::tx::{Observer, Outcome, Settled};

pub(super) fn routes() -> Vec<Route> {
    routes![changes]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(changes))]
pub(super) struct Paths;

/// Where changes are told. A clone is another handle on the same.
#[derive(Clone)]
pub(super) struct Changes(Sender<List>);

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
        /// Who falls behind asks for the lists anew anyway.
        const BACKLOG: usize = 16;

        Self(Sender::new(BACKLOG))
    }
}

impl Observer for Changes {
    fn settled(&self, request: &Request<'_>, settled: &Settled) {
        // A request whose COMMIT was not answered may have changed something too.
        if request.method() != Method::Get && settled.outcome != Outcome::RolledBack {
            // Nobody may be listening.
            let _ = List::of(request).map(|list| self.0.send(list));
        }
    }
}

/// Server-sent events `changed`, each with the name of a list, until the client goes or the service
/// shuts down. What other processes change is not told.
#[utoipa::path(responses(
    (status = 200, description = "Without an end.", body = String, content_type = "text/event-stream")
))]
#[get("/changes")]
fn changes(changes: &State<Changes>, mut shutdown: Shutdown) -> EventStream![] {
    /// A client that is gone is noticed by the next thing that is written to it.
    const HEARTBEAT: Duration = Duration::from_secs(5);
    /// How soon a browser asks again that has lost us.
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
