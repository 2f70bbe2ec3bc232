//! Errors of aggregates.

use rocket::http::Status;
use rocket_tx::Problem;

use crate::lock::LockError;

/// Why an aggregate was not loaded, or not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// The id is not valid. 422.
    #[error("the id is not valid: it must have 1 to 200 bytes and no control characters")]
    Id,

    /// A new aggregate was committed without any event, so there is nothing to store. 500.
    #[error(
        "`{0}` is new and has no events, so a commit would store nothing; record an event in it first"
    )]
    NoEvents(String),

    /// The stream has received other events since the aggregate was loaded. 409.
    #[error("`{0}` was changed after it was loaded; load it again and retry")]
    Conflict(String),

    /// An event cannot be replayed. Other streams are not affected. 500.
    #[error("event {sequence} of `{stream}` cannot be replayed: {reason}")]
    Corrupt {
        /// The stream.
        stream: String,
        /// The sequence of the event in the stream.
        sequence: u64,
        /// The defect, without parts of the payload.
        reason: String,
    },

    /// An event, or the state for a snapshot, cannot be written as JSON. 500.
    #[error("`{what}` cannot be written as JSON: {reason}")]
    Encode {
        /// The name of the event, or the type of the aggregate.
        what: &'static str,
        /// serde's error.
        reason: String,
    },

    /// The lock was not acquired, or was lost.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// An error of the request's transaction.
    #[error(transparent)]
    Transaction(#[from] rocket_tx::Error),

    /// The database failed.
    #[error("the database of the events failed: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<AggregateError> for rocket_tx::Error {
    /// Maps each error to the status that its variant names. A lock, transaction or database error
    /// keeps the status that [`rocket_tx::Error`] gives it.
    fn from(error: AggregateError) -> Self {
        let (kind, status) = match error {
            AggregateError::Id => ("aggregate-id", Status::UnprocessableEntity),
            AggregateError::Conflict(_) => return Self::Conflict(error.to_string().into()),
            AggregateError::NoEvents(_) => {
                ("aggregate-without-events", Status::InternalServerError)
            }
            AggregateError::Corrupt { .. } => ("aggregate-corrupt", Status::InternalServerError),
            AggregateError::Encode { .. } => {
                ("aggregate-not-encodable", Status::InternalServerError)
            }
            AggregateError::Lock(error) => return error.into(),
            AggregateError::Transaction(error) => return error,
            AggregateError::Database(error) => return error.into(),
        };
        Self::Problem(Box::new(Problem::new(status, kind, error.to_string())))
    }
}
