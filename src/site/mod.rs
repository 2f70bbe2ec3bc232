//! The pages: the todo app at `/`, the console, the aggregates, the contract; their feed `/changes`;
//! and the headers that restrict them in a browser.
//!
//! Their files are part of the binary, so it can be started anywhere.

pub(crate) mod changes;

use rocket::get;
use rocket::http::{ContentType, Header};
use rocket::response::content::RawHtml;
use rocket::shield::{Policy, Referrer, Shield};

use crate::http::{Endpoints, Fails, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("pages": todos, aggregates, contract, asset)
}

/// The page for operators.
pub(crate) fn operator_endpoints() -> Endpoints {
    endpoints!("console": console)
}

/// The todo app.
#[utoipa::path(responses((status = 200, description = "A page.", body = String, content_type = "text/html")))]
#[get("/")]
fn todos() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/index.html"))
}

/// A request that is made to fail, and everything that happens to it.
#[utoipa::path(responses((status = 200, description = "A page.", body = String, content_type = "text/html")))]
#[get("/console")]
fn console() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/console.html"))
}

/// An aggregate as it grows.
#[utoipa::path(responses((status = 200, description = "A page.", body = String, content_type = "text/html")))]
#[get("/aggregates")]
fn aggregates() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/aggregates.html"))
}

/// A readable view of this document.
#[utoipa::path(responses((status = 200, description = "A page.", body = String, content_type = "text/html")))]
#[get("/contract")]
fn contract() -> RawHtml<&'static str> {
    RawHtml(include_str!("../../static/contract.html"))
}

/// The files of the pages.
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

/// A script, a style or a picture of the pages.
#[utoipa::path(responses(
    (status = 200, description = "Found.", content(
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

/// Rocket's own policies, and two more.
pub(crate) fn shield() -> Shield {
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
