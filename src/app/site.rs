//! The pages, and what browsers are told of them: the todo app at `/`, the console beside it, the
//! aggregates, the contract.
//!
//! Their files are part of the binary: it shows them from wherever it is started.

use rocket::http::{ContentType, Header};
use rocket::response::content::RawHtml;
use rocket::shield::{Policy, Referrer, Shield};
use rocket::{Route, get, routes};

/// The todo app, and what can be seen by everybody.
pub(super) fn routes() -> Vec<Route> {
    routes![todos, aggregates, contract, asset]
}

/// For operators.
pub(super) fn inside() -> Vec<Route> {
    routes![console]
}

#[get("/")]
fn todos() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/index.html"))
}

#[get("/console")]
fn console() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/console.html"))
}

#[get("/aggregates")]
fn aggregates() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/aggregates.html"))
}

#[get("/contract")]
fn contract() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/contract.html"))
}

/// What the pages are made of.
const ASSETS: [(&str, &str); 10] = [
    ("aggregates.js", include_str!("../../static/aggregates.js")),
    ("console.js", include_str!("../../static/console.js")),
    ("contract.js", include_str!("../../static/contract.js")),
    ("element.js", include_str!("../../static/element.js")),
    ("faults.js", include_str!("../../static/faults.js")),
    ("icon.svg", include_str!("../../static/icon.svg")),
    ("service.js", include_str!("../../static/service.js")),
    ("style.css", include_str!("../../static/style.css")),
    ("timeline.js", include_str!("../../static/timeline.js")),
    ("todos.js", include_str!("../../static/todos.js")),
];

#[get("/static/<file>")]
fn asset(file: &str) -> Option<(ContentType, &'static str)> {
    let (name, text) = ASSETS.into_iter().find(|(name, _)| *name == file)?;
    let (_, extension) = name.rsplit_once('.')?;
    Some((ContentType::from_extension(extension)?, text))
}

/// Rocket's own policies, and two more.
pub(super) fn shield() -> Shield {
    Shield::default()
        .enable(ContentSecurityPolicy)
        .enable(Referrer::NoReferrer)
}

/// Nothing from any other host, and no script or style that is not a file of ours.
/// See <https://www.w3.org/TR/CSP3/>.
#[derive(Default)]
struct ContentSecurityPolicy;

impl Policy for ContentSecurityPolicy {
    const NAME: &'static str = "Content-Security-Policy";

    fn header(&self) -> Header<'static> {
        Header::new(
            Self::NAME,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
             connect-src 'self'; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'; \
             form-action 'none'",
        )
    }
}
