//! Errors of locks.

use std::time::Duration;

use rocket::http::Status;

/// Why a key was not locked, or not freed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The key breaks the rule.
    #[error("a key has 1 to 300 bytes and no control characters")]
    Key,

    /// Another holder kept it for longer than the longest wait.
    #[error("`{key}` was held by somebody else for {waited:?}; retry")]
    TimedOut {
        /// The key.
        key: String,
        /// How long was waited.
        waited: Duration,
    },

    /// Another holder has it, and the request must not wait: others may be waiting for something
    /// that it has, a transaction, a connection, or the lease of a key that sorts behind this one.
    #[error(
        "`{0}` is held by somebody else, and this request must not wait for it: it has a transaction, a connection or a lease that comes after; retry, or load aggregates first and in order"
    )]
    Held(String),

    /// The lease was taken over, because it had expired, or an operator freed it.
    #[error("the lease of `{0}` was lost: it had expired, or was freed; load again and retry")]
    Lost(String),

    /// The row of a lease could not be deleted in all its time to live, and is left to expire. No
    /// other holder had it until then.
    #[error(
        "the lease of `{0}` could not be released and is left to expire; others wait until then"
    )]
    NotReleased(String),

    /// The runtime ends, and nothing is acquired any more.
    #[error("`{0}` was not acquired: this process is shutting down; retry at another one")]
    ShuttingDown(String),

    /// The database that holds the leases failed.
    #[error("the leases cannot be reached: {0}; retry")]
    Database(#[from] sqlx::Error),
}

impl From<LockError> for rocket_tx::Error {
    /// By the failure table: 503 for what passes, 409 for a lease that was lost.
    fn from(error: LockError) -> Self {
        let status = match error {
            LockError::Key => Status::UnprocessableEntity,
            LockError::TimedOut { .. }
            | LockError::Held(_)
            | LockError::NotReleased(_)
            | LockError::ShuttingDown(_) => Status::ServiceUnavailable,
            LockError::Lost(_) => return Self::Conflict(error.to_string().into()),
            LockError::Database(error) => return Self::from(error),
        };
        let reason = error.to_string().into();
        Self::Refused { status, reason }
    }
}
