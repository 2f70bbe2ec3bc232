//! A time limit for handlers.

use std::time::Duration;

use rocket::http::Status;
use rocket::response::Responder;
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Route};
use tokio::time::timeout;

use crate::tx::failure::Error;
use crate::tx::registry::Outstanding;

/// Returns the same routes with a time limit: a handler that takes longer than `limit` is dropped.
///
/// The client then receives a 503 with `Retry-After` and the outcome `rolled-back`.
///
/// The limit is for failures of the network or of the server's machine. A database limits the time
/// of its statements itself (`statement_timeout`), but in such a failure its reply may be lost
/// without an error. Then the driver waits until the operating system closes the connection, which
/// may take many minutes.
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
/// The limit starts when Rocket tries the route. It covers the guards, waits for connections,
/// reading the request's body, and the handler itself. Make it longer than `connect_timeout` and
/// `statement_timeout` together: if the server is alive, its own timeout should come first, because
/// that also ends the statement at the server.
///
/// The limit does not cover the settlement, which has its own limit, `settle_timeout`. Nor does it
/// cover a response body that streams. A body that holds a [`Read`](crate::tx::Read) must make
/// progress within `read_idle_timeout`.
///
/// # Cancellation
///
/// The handler's future is dropped at its next `.await`, with everything that it owns. Code that
/// blocks the thread is not interrupted, nor are tasks that the handler has spawned. The handler's
/// effects outside the request's transactions remain. The request is doomed, so that no catcher can
/// turn it into a success.
///
/// Each transaction of the request is rolled back by closing its connection. No other request gets
/// that connection, because a reply may have been read only in part. On Postgres, another session
/// first ends the transaction at the server, and checks whether the handler had ended it itself. If
/// the server cannot be reached, the server may continue the statement, and the transaction may
/// keep its locks, until the server detects the lost connection or until `statement_timeout`. The
/// transaction will not commit.
///
/// # Panics
///
/// A panic of a handler is passed on unchanged.
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
        // `timeout` has dropped the handler's future, and the guards in it, when it returns.
        let outcome = timeout(self.limit, self.handler.handle(request, data)).await;
        outcome.unwrap_or_else(|_| time_out(request, self.limit))
    }
}

/// Dooms the request, abandons its transactions, and returns the 503.
fn time_out<'r>(request: &'r Request<'_>, limit: Duration) -> Outcome<'r> {
    let error = Error::HandlerTimeout(limit);
    if let Some(outstanding) = Outstanding::used_by(request) {
        // This fails only after the verdict, and then no handler is running.
        let _ = outstanding.doom(Status::ServiceUnavailable, error.to_string());
        outstanding.abandon();
    }
    match error.respond_to(request) {
        Ok(response) => Outcome::Success(response),
        Err(status) => Outcome::Error(status),
    }
}
