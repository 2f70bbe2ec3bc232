//! Handlers around handlers: what must not stand inside them.

use rocket::Route;
use rocket::route::Handler;

/// The same routes, with what `around` makes of each handler.
pub(super) fn decorate<H: Handler>(
    routes: Vec<Route>,
    around: impl Fn(Box<dyn Handler>) -> H,
) -> Vec<Route> {
    routes
        .into_iter()
        .map(|mut route| {
            route.handler = Box::new(around(route.handler));
            route
        })
        .collect()
}
