//! Runs handlers inside the span of their request.

use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Route};
use tracing::Instrument;

use super::context::RequestContext;

/// Returns the same routes, with guards and handlers that log their events in the span `request`.
///
/// The span has the request's id, method and route. Settlement adds the verdict, the outcome and
/// the status. Settlement itself always logs in this span, also without `traced`.
///
/// ```no_run
/// # use rocket::{get, routes};
/// #[get("/")]
/// fn index() -> &'static str {
///     tracing::info!("in the span of this request");
///     "hello"
/// }
///
/// let rocket = rocket::build().mount("/", rocket_tx::tx::traced(routes![index]));
/// ```
pub fn traced(routes: Vec<Route>) -> Vec<Route> {
    routes
        .into_iter()
        .map(|mut route| {
            route.handler = Box::new(Traced(route.handler));
            route
        })
        .collect()
}

#[derive(Clone)]
struct Traced(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for Traced {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        let handling = self.0.handle(request, data);
        match RequestContext::of(request) {
            Some(context) => {
                let route = request.route().and_then(|route| route.name.as_deref());
                context.span.record("route", route.unwrap_or("-"));
                handling.instrument(context.span.clone()).await
            }
            None => handling.await,
        }
    }
}
