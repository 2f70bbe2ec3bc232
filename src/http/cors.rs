//! Cross-origin access (CORS): pages of any origin may use the todos, the aggregates and the audit
//! trail. The Todo-Backend contract requires it for the todos. The endpoints for operators have no
//! CORS headers, because a foreign page in an operator's browser must not read them.

use rocket::fairing::{Fairing, Info, Kind};
use rocket::http::Header;
use rocket::{Request, Response};

pub(crate) struct Cors;

#[rocket::async_trait]
impl Fairing for Cors {
    fn info(&self) -> Info {
        Info {
            name: "CORS",
            kind: Kind::Response,
        }
    }

    async fn on_response<'r>(&self, request: &'r Request<'_>, response: &mut Response<'r>) {
        let list = request.uri().path().segments().next();
        if !matches!(list, Some("todos" | "aggregates" | "audit")) {
            return;
        }
        response.set_header(Header::new("Access-Control-Allow-Origin", "*"));
        response.set_header(Header::new(
            "Access-Control-Allow-Methods",
            "GET, HEAD, POST, PATCH, DELETE, OPTIONS",
        ));
        response.set_header(Header::new(
            "Access-Control-Allow-Headers",
            "Content-Type, Idempotency-Key, If-Match, X-Fault",
        ));
        response.set_header(Header::new(
            "Access-Control-Expose-Headers",
            "ETag, Idempotency-Replayed, Location, X-Request-Id, Transaction-Outcome, Transaction-Pending, Retry-After",
        ));
    }
}
