//! Whether attempts of [`Begin::retrying`](crate::tx::Begin::retrying) are running, and whether the
//! current code belongs to them.
//!
//! A failed attempt is undone. Code that runs beside the attempts, for example in the same `join!`,
//! must not have its own work undone with them.

use std::borrow::Cow;

use rocket::http::Status;

use crate::tx::failure::Error;
use crate::tx::request_id::RequestId;

tokio::task_local! {
    /// The request to whose attempt the current code belongs.
    static ATTEMPT: RequestId;
}

/// The attempts of a request that are running.
pub(super) struct Attempting {
    request: RequestId,
    /// The database of the `Begin`.
    pub(super) database: &'static str,
    /// The doom of code beside the attempts. It holds, whatever becomes of the attempts.
    pub(super) doom: Option<(Status, Cow<'static, str>)>,
}

impl Attempting {
    pub(super) fn new(request: RequestId, database: &'static str) -> Self {
        Self {
            request,
            database,
            doom: None,
        }
    }

    /// Returns whether the current code belongs to an attempt.
    pub(super) fn is_here(&self) -> bool {
        ATTEMPT.try_with(|request| *request == self.request) == Ok(true)
    }

    /// # Errors
    ///
    /// [`Error::Retrying`] if the current code runs beside the attempts.
    pub(super) fn check_here(&self) -> Result<(), Error> {
        match self.is_here() {
            true => Ok(()),
            false => Err(self.error()),
        }
    }

    pub(super) fn error(&self) -> Error {
        Error::Retrying(self.database)
    }
}

/// Runs an attempt of `request`.
pub(super) async fn attempt<T>(request: RequestId, work: impl Future<Output = T>) -> T {
    ATTEMPT.scope(request, work).await
}
