//! Wraps the handlers of routes in another handler, for work that handlers should not do
//! themselves.

use rocket::Route;
use rocket::route::Handler;

/// Passes the handler of each route to `wrap`, and puts the returned handler in its place.
pub(crate) fn decorate<H: Handler>(
    routes: Vec<Route>,
    wrap: impl Fn(Box<dyn Handler>) -> H,
) -> Vec<Route> {
    let decorated = |mut route: Route| {
        route.handler = Box::new(wrap(route.handler));
        route
    };
    routes.into_iter().map(decorated).collect()
}
