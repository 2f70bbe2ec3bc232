//! `/registry/events`: a live feed of what happens to requests, for the console and for `curl -N`.

use std::time::Duration;

use rocket::http::Method;
use rocket::response::stream::{Event, EventStream};
use rocket::route::{Handler, Outcome};
use rocket::serde::json::json;
use rocket::tokio::select;
use rocket::{Data, Request, Route, Shutdown, State, get};
use rocket_tx::db::{Access, TransactionPool, UrlConnection, UrlPool, WaitPolicy};
use rocket_tx::tx::{FeedItem, Live, Observer, SettlementReport};
use rocket_tx::{RequestId, Tx, with_backend};
use sqlx::FromRow;
use tracing::Instrument;

use crate::databases::{Audit, Main};
use crate::http::{Endpoints, decorate, endpoints};

use super::statements::unreported;

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("registry": events)
}

/// Reports what happens to the transactions of requests, as server-sent events.
///
/// The stream lasts until the client disconnects or the service shuts down. A client that reads too
/// slowly misses events; an event `missed` then carries their number.
#[utoipa::path(responses(
    (status = 200, description = "A stream that stays open.", body = String, content_type = "text/event-stream")
))]
#[get("/registry/events")]
fn events(live: &State<Live>, mut shutdown: Shutdown) -> EventStream![] {
    /// The service detects that a client has disconnected only when it writes to the client.
    const HEARTBEAT: Duration = Duration::from_secs(2);

    let mut listener = live.listen();
    let stream = EventStream! {
        yield Event::comment("listening");
        loop {
            let item = select! {
                item = listener.next() => item,
                () = &mut shutdown => break,
            };
            match item {
                Some(FeedItem::Event(event)) => yield Event::json(&*event).event("request"),
                Some(FeedItem::Lagged(events)) => yield Event::data(events.to_string()).event("missed"),
                Some(_) => {}
                None => break,
            }
        }
    };
    stream.heartbeat(HEARTBEAT)
}

/// Wraps routes so that they count the rows of both databases for requests with the header `X-Run`,
/// while the feed has a client.
///
/// Rows are counted before the handler, inside the request's transactions after the handler, and
/// after the request was settled.
pub(crate) fn count_rows(routes: Vec<Route>) -> Vec<Route> {
    decorate(routes, CountRows)
}

#[derive(Clone)]
struct CountRows(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for CountRows {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        let watch = Watch::of(request).await;
        if let Some(watch) = &watch {
            watch.committed("before").instrument(unreported()).await;
        }
        let outcome = self.0.handle(request, data).await;
        if let Some(watch) = &watch {
            watch.inside(request).instrument(unreported()).await;
        }
        outcome
    }
}

/// An observer that counts the rows after a request was settled.
pub(crate) struct Recount;

impl Observer for Recount {
    fn settled(&self, request: &Request<'_>, settled: &SettlementReport) {
        if let Some(watch) = Watch::for_request(request, settled.request) {
            rocket::tokio::spawn(async move { watch.committed("after").await });
        }
    }
}

/// Counts the rows for one request. A watch exists only if the feed has a client, the request has
/// the header `X-Run`, and its method is neither GET nor HEAD.
struct Watch {
    request: RequestId,
    /// The header `X-Run`, by which a console recognizes its own requests.
    run: String,
    live: Live,
    main: UrlPool,
    audit: UrlPool,
}

impl Watch {
    async fn of(request: &Request<'_>) -> Option<Self> {
        let id = request.guard::<RequestId>().await.succeeded()?;
        Self::for_request(request, id)
    }

    fn for_request(request: &Request<'_>, id: RequestId) -> Option<Self> {
        let rocket = request.rocket();
        let live: &Live = rocket.state()?;
        let run = request.headers().get_one("X-Run")?;
        if run.len() > 64 || live.listeners() == 0 || request.method() == Method::Get {
            return None;
        }
        Some(Self {
            request: id,
            run: run.to_owned(),
            live: live.clone(),
            main: (**rocket.state::<Main>()?).clone(),
            audit: (**rocket.state::<Audit>()?).clone(),
        })
    }

    /// Counts the committed rows, which all requests see.
    async fn committed(&self, at: &'static str) {
        let main = read(&self.main, count_main).await;
        let audit = read(&self.audit, count_audit).await;
        self.publish(at, main, audit);
    }

    /// Counts the rows as this request sees them, inside the transactions that it has begun.
    async fn inside(&self, request: &Request<'_>) {
        let mut counted = (None, None);
        if let Ok(Some(mut tx)) = Tx::<Main>::current(request) {
            counted.0 = count_main(&mut tx).await.ok();
        }
        if let Ok(Some(mut tx)) = Tx::<Audit>::current(request) {
            counted.1 = count_audit(&mut tx).await.ok();
        }
        if counted != (None, None) {
            self.publish("inside", counted.0, counted.1);
        }
    }

    fn publish(&self, at: &'static str, main: Option<MainRows>, audit: Option<i64>) {
        self.live.publish(self.request, "rows", || {
            json!({
                "at": at,
                "run": self.run,
                "todos": main.map(|rows| rows.todos),
                "aggregates": main.map(|rows| rows.aggregates),
                "events": main.map(|rows| rows.events),
                "audit": audit,
            })
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, FromRow)]
struct MainRows {
    todos: i64,
    aggregates: i64,
    events: i64,
}

async fn count_main(connection: &mut UrlConnection) -> sqlx::Result<MainRows> {
    with_backend!(connection, |db| sqlx::query_as(
        "SELECT (SELECT count(*) FROM todos) AS todos, \
                (SELECT count(*) FROM todo_list) AS aggregates, \
                (SELECT count(*) FROM aggregate_events) AS events"
    )
    .fetch_one(db)
    .await)
}

async fn count_audit(connection: &mut UrlConnection) -> sqlx::Result<i64> {
    with_backend!(connection, |db| sqlx::query_scalar(
        "SELECT count(*) FROM audit"
    )
    .fetch_one(db)
    .await)
}

/// Counts rows on a connection that is free now. Returns `None` if no connection is free, because
/// requests must not wait for a count.
async fn read<T>(
    pool: &UrlPool,
    count: impl AsyncFnOnce(&mut UrlConnection) -> sqlx::Result<T>,
) -> Option<T> {
    let mut session = pool
        .session(Access::ReadOnly, WaitPolicy::FAIL_FAST)
        .await
        .ok()?;
    count(&mut session).await.ok()
}
