//! Handlers around handlers: what must not stand inside them. And what routes are called.

use rocket::Route;
use rocket::route::Handler;

/// The same routes, called by the part of the service that they belong to: `todos::create`.
pub(super) fn named(part: &str, routes: Vec<Route>) -> Vec<Route> {
    routes
        .into_iter()
        .map(|mut route| {
            let name = route.name.as_deref().unwrap_or_default();
            route.name = Some(format!("{part}::{name}").into());
            route
        })
        .collect()
}

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
