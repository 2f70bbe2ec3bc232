//! Errors of aggregates.

use rocket::http::Status;

use crate::lock::LockError;

/// Why an aggregate was not loaded, or not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id breaks the rule. 422.
    #[error("an id has 1 to 200 bytes and no control characters")]
    Id,

    /// Another writer has appended to the stream since it was loaded. 409.
    #[error("`{0}` was changed by somebody else meanwhile; load it again and retry")]
    Conflict(String),

    /// An event cannot be understood. Other streams are not affected. 500.
    #[error("event {sequence} of `{stream}` cannot be replayed: {reason}")]
    Corrupt {
        /// The stream.
        stream: String,
        /// The event's place in it.
        sequence: u64,
        /// The defect, without the payload.
        reason: String,
    },

    /// An event, or the state for a snapshot, cannot be written as JSON. 500.
    #[error("`{what}` cannot be written as JSON: {reason}")]
    Encode {
        /// Which event, or which aggregate.
        what: &'static str,
        /// serde's error.
        reason: String,
    },

    /// The lock was not to be had, or was lost.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// The request's transaction could not do it.
    #[error(transparent)]
    Transaction(#[from] rocket_tx::Error),

    /// The database failed.
    #[error("the events cannot be reached: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<Error> for rocket_tx::Error {
    /// By the failure table.
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Id => Status::UnprocessableEntity,
            Error::Conflict(_) => return Self::Conflict(error.to_string().into()),
            Error::Corrupt { .. } | Error::Encode { .. } => Status::InternalServerError,
            Error::Lock(error) => return error.into(),
            Error::Transaction(error) => return error,
            Error::Database(error) => return error.into(),
        };
        let reason = error.to_string().into();
        Self::Refused { status, reason }
    }
}
