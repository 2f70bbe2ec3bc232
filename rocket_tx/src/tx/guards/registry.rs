//! The guard `&Outstanding`, and what follows when a guard fails.

use rocket::request::{FromRequest, Outcome};
use rocket::{Ignite, Request, Rocket, Sentinel};

use super::launch;
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

/// What a guard of another library answers when it fails by which something would be outstanding: the
/// request is rolled back, no catcher makes a success of it, and
/// [`problem_catchers`](crate::tx::problem_catchers) tell the client the error.
pub fn guard_failed<T>(request: &Request<'_>, error: Error) -> Outcome<T, Error> {
    if let Ok(outstanding) = Outstanding::of(request) {
        outstanding.mark_used();
    }
    failed_to_read(request, error)
}

/// A guard of ours has failed. Whatever else is outstanding is rolled back.
pub(super) fn failed_to_read<T>(request: &Request<'_>, error: Error) -> Outcome<T, Error> {
    match error.is_known_trouble(request) {
        true => tracing::debug!(%error, uri = %request.uri(), "a request guard failed"),
        false => tracing::warn!(%error, uri = %request.uri(), "a request guard failed"),
    }
    if let Ok(outstanding) = Outstanding::of(request) {
        outstanding.fail(error.problem());
    }
    Outcome::Error((error.status(), error))
}
