//! Bodies of which the fingerprint is taken.

use std::io;

use rocket::Request;
use rocket::data::{ByteUnit, Capped, Data, FromData, Outcome, ToByteUnit};
use rocket::http::Status;
use rocket_tx::Error;

use crate::current::Current;

/// Why a body is not passed to the handler.
#[derive(Debug)]
pub enum BodyError {
    /// The body could not be read.
    Unreadable(io::Error),
    /// The handler must not run: an earlier request with the same key has done the work, is still
    /// being served, or had other content. Respond with this error.
    Refused(Error),
}

/// Reads the body of a request, up to `limit`. To be called by a data guard.
///
/// Rocket passes the body to one data guard, and a route decorator sees only its first 512 bytes.
/// So for a longer body, the fingerprint of the request contains the whole body only if a data guard
/// reads it with this function, or if the data guard is [`Bytes`]. With other data guards, two
/// bodies whose first 512 bytes are equal count as equal.
///
/// If the body is complete and the request has a key, this waits for an earlier request with the
/// same key, and looks for its response.
///
/// # Errors
///
/// [`BodyError`].
pub async fn read_body(
    request: &Request<'_>,
    data: Data<'_>,
    limit: ByteUnit,
) -> Result<Capped<Vec<u8>>, BodyError> {
    let body = data.open(limit).into_bytes().await;
    let body = body.map_err(BodyError::Unreadable)?;
    if body.is_complete()
        && let Some(keyed) = Current::get(request)
    {
        let known = keyed.body_is_known(&body).await;
        known.map_err(BodyError::Refused)?;
    }
    Ok(body)
}

/// A data guard: the whole body as bytes, of which the fingerprint of the request is taken.
///
/// The limit is `limits.bytes` in `Rocket.toml`, by default 8 KiB. A body over the limit is refused
/// with a 413.
///
/// ```
/// # use rocket_tx::{Begin, Error, db::SqlitePool, rocket_db_pools::{self, Database}};
/// use rocket_tx_idempotency::Bytes;
///
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// #[rocket::post("/upload", data = "<body>")]
/// async fn upload(body: Bytes, main: Begin<Main>) -> Result<(), Error> {
///     let mut tx = main.begin().await?;
///     sqlx::query("INSERT INTO files VALUES ($1)").bind(body.0).execute(&mut *tx).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Bytes(
    /// The body.
    pub Vec<u8>,
);

#[rocket::async_trait]
impl<'r> FromData<'r> for Bytes {
    type Error = BodyError;

    async fn from_data(request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r, Self> {
        let limit = request.limits().get("bytes").unwrap_or(8.kibibytes());
        match read_body(request, data, limit).await {
            Ok(body) if body.is_complete() => Outcome::Success(Self(body.into_inner())),
            Ok(_) => {
                let error = io::Error::other(format!("the body is larger than {limit}"));
                Outcome::Error((Status::PayloadTooLarge, BodyError::Unreadable(error)))
            }
            Err(BodyError::Refused(error)) => {
                let status = error.status();
                Outcome::Error((status, BodyError::Refused(error)))
            }
            Err(error) => Outcome::Error((Status::BadRequest, error)),
        }
    }
}
