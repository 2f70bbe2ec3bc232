//! Errors as clients receive them: `application/problem+json`, RFC 9457.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use parking_lot::Mutex;
use rocket::http::{ContentType, Header, Status};
use rocket::request::Request;
use rocket::response::{self, Responder, Response};
use rocket::serde::json::Value;
use serde::Serialize;

use crate::tx::context::RequestContext;
use crate::tx::verdict::Outcome;

/// A problem document ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)).
///
/// `instance` is the request's id. `outcome` is the outcome of the request's transactions.
/// Settlement adds `outcome`, also to a problem that a handler or a catcher has returned. A 503
/// carries `Retry-After`.
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
    /// `urn:rocket_tx:problem:`, followed by the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The reason phrase of the status.
    title: Cow<'static, str>,
    status: u16,
    /// What went wrong, and what to do about it.
    detail: Cow<'static, str>,
    /// The id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "utoipa", schema(nullable = false, format = "uuid"))]
    instance: Option<String>,
    /// The outcome of the request's transactions, if it had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "utoipa", schema(nullable = false))]
    outcome: Option<Outcome>,
    #[serde(flatten)]
    #[cfg_attr(feature = "utoipa", schema(ignore))]
    extension: Option<Box<Extension>>,
}

/// The parts that few problems have. Boxed, so that a `Result` with a problem stays small.
#[derive(Debug, Clone, Default, Serialize)]
struct Extension {
    /// Members for this kind of problem.
    #[serde(flatten)]
    members: BTreeMap<&'static str, Value>,
    /// The header `Retry-After`, in seconds.
    #[serde(skip)]
    retry_after: Option<u64>,
}

impl Problem {
    /// Creates a problem with the `type` `urn:rocket_tx:problem:<kind>`. `kind` is one word, or
    /// several words joined by hyphens. `detail` is shown to clients.
    pub fn new(status: Status, kind: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: format!("urn:rocket_tx:problem:{kind}"),
            title: status.reason_lossy().into(),
            status: status.code,
            detail: detail.into(),
            instance: None,
            outcome: None,
            extension: None,
        }
    }

    /// Adds a member for this kind of problem, beside those of RFC 9457. Names that the document
    /// already has (`type`, `title`, `status`, `detail`, `instance`, `outcome`) must not be used.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        let extension = self.extension.get_or_insert_default();
        extension.members.insert(name, value.into());
        self
    }

    /// Makes the response carry `Retry-After`, rounded up to whole seconds. A 503 always carries
    /// it: one second, unless this is called.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.extension.get_or_insert_default().retry_after = Some(seconds);
        self
    }

    /// Returns the status of the response.
    pub fn status(&self) -> Status {
        Status::new(self.status)
    }

    /// Returns the description that clients receive.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    pub(in crate::tx) fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Adds a sentence for the client.
    pub(in crate::tx) fn with_advice(mut self, advice: &str) -> Self {
        self.detail = format!("{}. {advice}", self.detail.trim_end_matches('.')).into();
        self
    }

    /// Takes the problem that a handler or a catcher of `request` has returned last, if any.
    pub(in crate::tx) fn take_last(request: &Request<'_>) -> Option<Self> {
        LastProblem::of(request).0.lock().take()
    }

    /// Keeps the problem by which a guard of the service refuses `request`, for a catcher.
    pub(in crate::tx) fn keep_for_catcher(self, request: &Request<'_>) {
        *Refusal::of(request).0.lock() = Some(self);
    }

    /// Returns the problem that [`keep_for_catcher`](Self::keep_for_catcher) has kept last.
    pub(in crate::tx) fn kept_for_catcher(request: &Request<'_>) -> Option<Self> {
        Refusal::of(request).0.lock().clone()
    }

    fn of(mut self, request: &Request<'_>) -> Self {
        self.instance = RequestContext::of(request).map(|context| context.id.to_string());
        self
    }

    /// Writes this problem into `response`: the status, the content type, the body, and for a 503
    /// `Retry-After`. Other headers are kept.
    pub(in crate::tx) fn write(self, request: &Request<'_>, response: &mut Response<'_>) {
        let problem = self.of(request);
        response.set_status(problem.status());
        response.set_header(content_type());
        // Contention usually ends quickly, so clients may retry after one second.
        let is_unavailable = problem.status == Status::ServiceUnavailable.code;
        let chosen = problem.extension.as_ref().and_then(|it| it.retry_after);
        if let Some(seconds) = chosen.or(is_unavailable.then_some(1)) {
            response.set_header(Header::new("Retry-After", seconds.to_string()));
        }
        // Serialization cannot fail: the struct holds only strings, a number and a plain enum.
        let body = rocket::serde::json::to_string(&problem).unwrap_or_default();
        response.set_sized_body(body.len(), Cursor::new(body));
    }
}

/// The problem that was last made the response of a request. Settlement completes it with the
/// outcome.
#[derive(Default)]
struct LastProblem(Mutex<Option<Problem>>);

impl LastProblem {
    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(Self::default)
    }
}

/// The problem by which a guard of the service has refused a request.
#[derive(Default)]
struct Refusal(Mutex<Option<Problem>>);

impl Refusal {
    fn of<'r>(request: &'r Request<'_>) -> &'r Self {
        request.local_cache(Self::default)
    }
}

fn content_type() -> ContentType {
    ContentType::new("application", "problem+json")
}

impl<'r> Responder<'r, 'static> for Problem {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let mut response = Response::new();
        self.clone().write(request, &mut response);
        *LastProblem::of(request).0.lock() = Some(self);
        Ok(response)
    }
}
