//! Handlers around handlers, for work that must not stand inside them.

use rocket::Route;
use rocket::route::Handler;

/// The same routes, with `around` around each handler.
pub(crate) fn decorate<H: Handler>(
    routes: Vec<Route>,
    around: impl Fn(Box<dyn Handler>) -> H,
) -> Vec<Route> {
    let decorated = |mut route: Route| {
        route.handler = Box::new(around(route.handler));
        route
    };
    routes.into_iter().map(decorated).collect()
}
