//! The guard `&Outstanding`, and the handling of a failed guard.

use rocket::request::{FromRequest, Outcome};
use rocket::{Ignite, Request, Rocket, Sentinel};

use super::launch;
use crate::tx::context::RequestContext;
use crate::tx::failure::Error;
use crate::tx::registry::Outstanding;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for &'r Outstanding {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        match Outstanding::of(request) {
            Ok(outstanding) => {
                outstanding.mark_wanted();
                Outcome::Success(outstanding)
            }
            Err(error) => guard_failed(request, error),
        }
    }
}

impl Sentinel for &Outstanding {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        launch::refuse_without_settlement(rocket)
    }
}

/// Records that a guard failed with `error`, and returns the outcome that the guard must return.
/// For guards of other libraries, if something would have become outstanding by the guard.
///
/// The request is rolled back, and no catcher can turn it into a success.
/// [`problem_catchers`](crate::tx::problem_catchers) report the error to the client. The response
/// carries `Transaction-Outcome`.
pub fn guard_failed<T>(request: &Request<'_>, error: Error) -> Outcome<T, Error> {
    if let Ok(outstanding) = Outstanding::of(request) {
        outstanding.mark_used();
    }
    fail_request(request, error)
}

/// Logs and records that a guard of this library failed. Everything outstanding will be rolled
/// back. Unlike [`guard_failed`], this does not mark the request transactional: the failed guard
/// may be a `Read`, and then there may be nothing to settle.
pub(super) fn fail_request<T>(request: &Request<'_>, error: Error) -> Outcome<T, Error> {
    log_failure(request, &error);
    if let Ok(outstanding) = Outstanding::of(request) {
        outstanding.fail(error.problem());
    }
    Outcome::Error((error.status(), error))
}

fn log_failure(request: &Request<'_>, error: &Error) {
    let id = RequestContext::of(request).map(|context| tracing::field::display(context.id));
    let uri = request.uri();
    // A client whose request was refused learns the reason, so it need not be in the log.
    match error.note_known_outage(request) || !error.status().class().is_server_error() {
        true => tracing::debug!(request = id, %error, %uri, "a request guard failed"),
        false => tracing::warn!(request = id, %error, %uri, "a request guard failed"),
    }
}

impl Error {
    /// Returns the outcome of a guard of the service that fails with this error, for example because
    /// it does not know the client. [`problem_catchers`](crate::tx::problem_catchers) report the
    /// error to the client. A failure with a status of 500 or above is logged.
    ///
    /// A handler that takes the guard as an `Option` or a `Result` runs nevertheless, and its response
    /// decides.
    ///
    /// ```
    /// use rocket::http::Status;
    /// use rocket::request::{FromRequest, Outcome, Request};
    /// use rocket_tx::Error;
    ///
    /// struct Token(String);
    ///
    /// #[rocket::async_trait]
    /// impl<'r> FromRequest<'r> for Token {
    ///     type Error = Error;
    ///
    ///     async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
    ///         match request.headers().get_one("Authorization") {
    ///             Some(token) => Outcome::Success(Self(token.to_owned())),
    ///             None => Error::refused(Status::Unauthorized, "send a token").into_outcome(request),
    ///         }
    ///     }
    /// }
    /// ```
    pub fn into_outcome<T>(self, request: &Request<'_>) -> Outcome<T, Self> {
        log_failure(request, &self);
        self.problem().keep_for_catcher(request);
        Outcome::Error((self.status(), self))
    }
}
