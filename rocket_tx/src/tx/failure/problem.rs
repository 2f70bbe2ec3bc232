//! Errors as clients see them: `application/problem+json`, RFC 9457.

use std::borrow::Cow;
use std::io::Cursor;

use parking_lot::Mutex;
use rocket::http::{ContentType, Header, Status};
use rocket::request::Request;
use rocket::response::{self, Responder, Response};
use serde::Serialize;

use crate::tx::context::RequestContext;
use crate::tx::verdict::Outcome;

/// A problem document ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)).
///
/// `instance` is the request's id. `outcome` is what became of the request's transactions;
/// settlement writes it in when it is known, whoever made the document.
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::Problem;
///
/// let problem = Problem::new(Status::UnprocessableEntity, "validation", "`title` is empty");
/// assert_eq!(problem.status(), Status::UnprocessableEntity);
/// ```
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
#[cfg_attr(
    feature = "utoipa",
    schema(description = "A problem document, by RFC 9457.")
)]
pub struct Problem {
    /// `urn:rocket_tx:problem:` and the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: Cow<'static, str>,
    status: u16,
    /// What went wrong, and what to do about it.
    detail: Cow<'static, str>,
    /// The id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "utoipa", schema(nullable = false, format = "uuid"))]
    instance: Option<String>,
    /// What became of the request's transactions, if it had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "utoipa", schema(nullable = false))]
    outcome: Option<Outcome>,
}

impl Problem {
    /// A problem of the given kind (one word or several with hyphens), which becomes its `type`:
    /// `urn:rocket_tx:problem:<kind>`. `detail` is shown to clients.
    pub fn new(status: Status, kind: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: format!("urn:rocket_tx:problem:{kind}"),
            title: status.reason_lossy().into(),
            status: status.code,
            detail: detail.into(),
            instance: None,
            outcome: None,
        }
    }

    /// The status that it is answered with.
    pub fn status(&self) -> Status {
        Status::new(self.status)
    }

    /// What clients are told in words.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    pub(in crate::tx) fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// The last problem that was made the response of `request`. Takes it.
    pub(in crate::tx) fn sent(request: &Request<'_>) -> Option<Self> {
        Sent::of(request).0.lock().take()
    }

    fn of(mut self, request: &Request<'_>) -> Self {
        self.instance = RequestContext::of(request).map(|context| context.id.to_string());
        self
    }

    /// Makes `response` this problem, and keeps its headers.
    pub(in crate::tx) fn write(self, request: &Request<'_>, response: &mut Response<'_>) {
        let problem = self.of(request);
        response.set_status(problem.status());
        response.set_header(content_type());
        if problem.status == Status::ServiceUnavailable.code {
            response.set_header(retry_after());
        }
        // A struct of strings and a number: nothing in it can fail to become JSON.
        let body = rocket::serde::json::to_string(&problem).unwrap_or_default();
        response.set_sized_body(body.len(), Cursor::new(body));
    }
}

/// The problem that the response of a request carries, to be completed with the outcome.
#[derive(Default)]
struct Sent(Mutex<Option<Problem>>);

impl Sent {
    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(Self::default)
    }
}

fn content_type() -> ContentType {
    ContentType::new("application", "problem+json")
}

/// Contention passes quickly: clients may retry after a second.
fn retry_after() -> Header<'static> {
    Header::new("Retry-After", "1")
}

impl<'r> Responder<'r, 'static> for Problem {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let mut response = Response::new();
        self.clone().write(request, &mut response);
        *Sent::of(request).0.lock() = Some(self);
        Ok(response)
    }
}
