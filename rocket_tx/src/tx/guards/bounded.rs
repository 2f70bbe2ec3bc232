//! Handlers that are given up when they take too long.

use std::time::Duration;

use rocket::http::Status;
use rocket::response::Responder;
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Route};
use tokio::time::timeout;

use crate::tx::failure::Error;
use crate::tx::registry::Outstanding;

/// The same routes, each given up when it has not answered within `limit`.
///
/// A database bounds the statements that it works on (`statement_timeout`). Nothing bounds the wait
/// for an answer that was lost on the way, because the network, or the server's machine, is gone
/// without a word: the driver waits as long as the system believes in the connection, which may be
/// many minutes. So the handler is given up as a whole. The client reads a 503 with `Retry-After`
/// and the outcome `rolled-back`.
///
/// ```no_run
/// # use std::time::Duration;
/// # use rocket::{post, routes};
/// #[post("/")]
/// fn create() {}
///
/// let routes = rocket_tx::tx::bounded(routes![create], Duration::from_secs(45));
/// let rocket = rocket::build().mount("/", routes);
/// ```
///
/// # Choosing the limit
///
/// It counts from when the route is tried: guards, waiting for connections, reading the body, and the
/// handler itself. Let it be longer than `connect_timeout` and `statement_timeout` together: where the
/// server lives, its own timeout should come first, because it ends the statement at the server too.
/// SettleContext the request comes after it, with a bound of its own, `settle_timeout`; so does a body
/// that streams: one that holds a [`Read`](crate::tx::Read) must make progress within `read_idle_timeout`.
///
/// # Cancellation
///
/// The handler's future is dropped at its next `.await`, and what it owns with it; code that blocks
/// the thread is not interrupted, nor are tasks that it has spawned. What it did outside the
/// request's transactions stays done. The request is doomed, so that no catcher makes it a success. Each
/// transaction that it had is rolled back by closing its connection: nobody knows where in an answer
/// it stands, and no other request gets it. On Postgres another session ends it at the server first,
/// and asks whether the handler had ended it by itself. If the server cannot be reached, it may go
/// on with the statement until it finds out, or until `statement_timeout`, and keep its locks for so
/// long; it will not commit.
///
/// # Panics
///
/// A handler that panics does so as without it.
pub fn bounded(routes: Vec<Route>, limit: Duration) -> Vec<Route> {
    routes
        .into_iter()
        .map(|mut route| {
            route.handler = Box::new(Bounded {
                handler: route.handler,
                limit,
            });
            route
        })
        .collect()
}

#[derive(Clone)]
struct Bounded {
    handler: Box<dyn Handler>,
    limit: Duration,
}

#[rocket::async_trait]
impl Handler for Bounded {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        // When this is over, the handler's future has been dropped, and its guards with it.
        let outcome = timeout(self.limit, self.handler.handle(request, data)).await;
        outcome.unwrap_or_else(|_| give_up(request, self.limit))
    }
}

fn give_up<'r>(request: &'r Request<'_>, limit: Duration) -> Outcome<'r> {
    let error = Error::HandlerTimeout(limit);
    if let Some(outstanding) = Outstanding::used_by(request) {
        // It fails only where the verdict has fallen, and no handler runs then.
        let _ = outstanding.doom(Status::ServiceUnavailable, error.to_string());
        outstanding.abandon();
    }
    match error.respond_to(request) {
        Ok(response) => Outcome::Success(response),
        Err(status) => Outcome::Error(status),
    }
}
