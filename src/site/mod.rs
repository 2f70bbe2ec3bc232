//! The HTML pages: the todo app at `/`, the console, the aggregates, the contract. This module also
//! has `/changes`, the feed that the pages subscribe to, and the headers that restrict what the
//! pages can do in a browser.
//!
//! The files of the pages are compiled into the binary, so it runs in any working directory.

pub(crate) mod changes;

use rocket::get;
use rocket::http::{ContentType, Header};
use rocket::response::content::RawHtml;
use rocket::shield::{Policy, Referrer, Shield};

use crate::http::{Endpoints, Fails, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("pages": todos, aggregates, contract, asset)
}

/// The endpoint of the page that only operators may use.
pub(crate) fn operator_endpoints() -> Endpoints {
    endpoints!("console": console)
}

/// Returns the page of the todo app.
#[utoipa::path(responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
#[get("/")]
fn todos() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/index.html"))
}

/// Returns the console, a page that makes requests fail and shows what happens to them.
#[utoipa::path(responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
#[get("/console")]
fn console() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/console.html"))
}

/// Returns the page that shows an aggregate with its events and its lease.
#[utoipa::path(responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
#[get("/aggregates")]
fn aggregates() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/aggregates.html"))
}

/// Returns a page that shows this document in a readable form.
#[utoipa::path(responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
#[get("/contract")]
fn contract() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/contract.html"))
}

/// The files of the pages.
const ASSETS: [(&str, &str); 13] = [
    ("aggregates.js", include_str!("../../static/aggregates.js")),
    ("console.js", include_str!("../../static/console.js")),
    ("contract.js", include_str!("../../static/contract.js")),
    ("element.js", include_str!("../../static/element.js")),
    ("events.js", include_str!("../../static/events.js")),
    ("faults.js", include_str!("../../static/faults.js")),
    ("icon.svg", include_str!("../../static/icon.svg")),
    ("lanes.js", include_str!("../../static/lanes.js")),
    ("race.js", include_str!("../../static/race.js")),
    ("service.js", include_str!("../../static/service.js")),
    ("style.css", include_str!("../../static/style.css")),
    ("timeline.js", include_str!("../../static/timeline.js")),
    ("todos.js", include_str!("../../static/todos.js")),
];

/// Returns a script, a style sheet or an image of the pages.
#[utoipa::path(responses(
    (status = 200, description = "The file.", content(
        (String = "text/javascript"), (String = "text/css"), (String = "image/svg+xml"),
    )),
    Fails<404>
))]
#[get("/static/<file>")]
fn asset(file: &str) -> Option<(ContentType, &'static str)> {
    let (name, text) = ASSETS.into_iter().find(|(name, _)| *name == file)?;
    let (_, extension) = name.rsplit_once('.')?;
    Some((ContentType::from_extension(extension)?, text))
}

/// Returns Rocket's default security headers and two more.
pub(crate) fn shield() -> Shield {
    Shield::default()
        .enable(ContentSecurityPolicy)
        .enable(Referrer::NoReferrer)
}

/// Forbids everything from other hosts, and all inline scripts and styles.
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
