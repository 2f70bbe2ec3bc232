//! What is to be done with a request's transactions, and why.

use std::borrow::Cow;
use std::fmt;

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};
use serde::Serialize;

use super::context::RequestContext;

/// Commit or roll back, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything outstanding is to be committed.
    Commit(Reason),
    /// Everything outstanding is to be rolled back.
    Rollback(Reason),
}

impl Verdict {
    /// Why.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Commit(reason) | Self::Rollback(reason) => reason,
        }
    }
}

/// Why a verdict fell. In the order in which they are asked; the first that applies decides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// These transactions were still checked out when the response was ready.
    Leaked(Vec<String>),
    /// Something panicked.
    Panicked,
    /// A guard of this library failed.
    GuardFailed,
    /// `outstanding.doom(..)` was called, with this reason.
    Doomed(Cow<'static, str>),
    /// The handler said so by its type: [`Commit`] or [`Rollback`].
    Handler,
    /// The service's veto.
    Vetoed,
    /// The status of the response.
    Status(Status),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(names) => write!(f, "still checked out: {}", names.join(", ")),
            Self::Panicked => f.write_str("panic"),
            Self::GuardFailed => f.write_str("a guard failed"),
            Self::Doomed(reason) => write!(f, "doomed: {reason}"),
            Self::Handler => f.write_str("the handler's type"),
            Self::Vetoed => f.write_str("veto"),
            Self::Status(status) => write!(f, "status {}", status.code),
        }
    }
}

/// What really happened. The `Transaction-Outcome` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "app", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// Everything was committed.
    Committed,
    /// Nothing was committed.
    RolledBack,
    /// One database was committed and another was not.
    Partial,
    /// COMMIT was sent, and its answer never came.
    Unknown,
}

impl Outcome {
    /// As the header says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled-back",
            Self::Partial => "partial",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a handler said by its return type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Commit,
    Rollback,
}

/// A response after which everything is committed, whatever its status below 500: a 404 that
/// records the attempt, say.
///
/// It speaks when the inner responder succeeds, or fails with a 4xx; a 5xx rolls back.
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::Commit;
///
/// #[rocket::post("/login")]
/// fn failed_login() -> Commit<Status> {
///     Commit(Status::Unauthorized) // and the failed attempt stays counted
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit<R>(
    /// The response.
    pub R,
);

/// A response after which everything is rolled back, whatever its status: a dry run is a
/// `Rollback` on a 200.
///
/// ```
/// use rocket_tx::Rollback;
///
/// #[rocket::post("/import?dry_run")]
/// fn dry_run() -> Rollback<&'static str> {
///     Rollback("would import 3 rows")
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollback<R>(
    /// The response.
    pub R,
);

impl<'r, 'o: 'r, R: Responder<'r, 'o>> Responder<'r, 'o> for Commit<R> {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'o> {
        let result = self.0.respond_to(request);
        let status = match &result {
            Ok(response) => response.status(),
            Err(status) => *status,
        };
        if status.code < 500 {
            choose(request, Choice::Commit);
        }
        result
    }
}

impl<'r, 'o: 'r, R: Responder<'r, 'o>> Responder<'r, 'o> for Rollback<R> {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'o> {
        choose(request, Choice::Rollback);
        self.0.respond_to(request)
    }
}

fn choose(request: &Request<'_>, choice: Choice) {
    if let Some(outstanding) = RequestContext::of(request).and_then(RequestContext::outstanding) {
        outstanding.choose(choice);
    }
}
