//! The pages, and what browsers are told of them: the todo app at `/`, the console beside it, the
//! aggregates, the contract.
//!
//! Their files are part of the binary: it shows them from wherever it is started.

use rocket::http::{ContentType, Header};
use rocket::response::content::RawHtml;
use rocket::shield::{Policy, Referrer, Shield};
use rocket::{Route, get, routes};

use super::openapi::Fails;

/// The todo app, and what can be seen by everybody.
pub(super) fn routes() -> Vec<Route> {
    routes![todos, aggregates, contract, asset]
}

/// For operators.
pub(super) fn inside() -> Vec<Route> {
    routes![console]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(todos, aggregates, contract, asset))]
pub(super) struct Paths;

/// As the contract names those for operators.
#[derive(utoipa::OpenApi)]
#[openapi(paths(console))]
pub(super) struct Inside;

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
