//! Return types by which a handler decides to commit or to roll back.

use rocket::request::Request;
use rocket::response::{self, Responder};

use crate::tx::registry::Outstanding;
use crate::tx::verdict::Choice;

/// A response that commits everything if its status is from 200 to 499. Use it, for example, for a
/// 401 after a failed login, if the request has stored that attempt.
///
/// Everything is also committed if the inner responder fails with a 4xx. If the status becomes 500
/// or above, by the inner responder, a catcher or a fairing, everything is rolled back.
/// [`Reason`](crate::tx::Reason) lists the rules that come before this one.
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::Commit;
///
/// #[rocket::post("/login")]
/// fn failed_login() -> Commit<Status> {
///     Commit(Status::Unauthorized) // commits the record of the failed attempt
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit<R>(
    /// The response.
    pub R,
);

/// A response that rolls everything back, for any status. Use it, for example, for a dry run that
/// responds with status 200.
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
        // The last choice counts. It is made after that of the inner responder, so that a
        // `Rollback` around a `Commit` rolls back.
        choose(request, Choice::Rollback);
        result
    }
}

fn choose(request: &Request<'_>, choice: Choice) {
    if let Some(outstanding) = Outstanding::used_by(request) {
        outstanding.choose(choice);
    }
}
