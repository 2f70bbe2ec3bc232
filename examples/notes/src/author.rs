//! A guard that reads the database before the handler runs.

use rocket::http::Status;
use rocket::outcome::try_outcome;
use rocket::request::{FromRequest, Outcome, Request};
use rocket_tx::{Error, Read};

use crate::Main;

/// The author of a request, known by the token in its header `Authorization`.
pub struct Author {
    pub name: String,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Author {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        // A `Read`, and not a `Tx`: its connection is back in the pool when this function returns.
        let mut read = try_outcome!(request.guard::<Read<Main>>().await);
        let token = request
            .headers()
            .get_one("Authorization")
            .unwrap_or_default();
        let name = sqlx::query_scalar("SELECT name FROM authors WHERE token = $1");
        let error = match name.bind(token).fetch_optional(&mut read).await {
            Ok(Some(name)) => return Outcome::Success(Self { name }),
            Ok(None) => Error::refused(Status::Unauthorized, "this token is not known"),
            Err(error) => error.into(),
        };
        error.into_outcome(request) // the client receives the reason
    }
}
