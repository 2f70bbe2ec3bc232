//! What a handler decides by its return type.

use rocket::request::Request;
use rocket::response::{self, Responder};

use crate::tx::registry::Outstanding;
use crate::tx::verdict::Choice;

/// A response after which everything is committed, whatever its status from 200 to 499: a 404 that
/// records the attempt, say.
///
/// It speaks when the inner responder succeeds, or fails with a 4xx. A 5xx rolls back: the
/// responder's own, and one that a catcher or a fairing makes of the response.
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
        let result = self.0.respond_to(request);
        // After what stands inside: a dry run of a handler that commits is a dry run.
        choose(request, Choice::Rollback);
        result
    }
}

fn choose(request: &Request<'_>, choice: Choice) {
    if let Some(outstanding) = Outstanding::used_by(request) {
        outstanding.choose(choice);
    }
}
