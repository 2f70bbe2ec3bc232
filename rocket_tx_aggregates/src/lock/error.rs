//! Errors of locks.

use std::time::Duration;

use rocket::http::Status;
use rocket_tx::Problem;

/// Why a key was not locked or not freed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The key is invalid.
    #[error("the lock key is invalid; use 1 to 300 bytes without control characters")]
    Key,

    /// Another holder had the key for longer than the longest wait. The holder may be the caller
    /// itself: an aggregate that it has loaded before, or a lock that it has not unlocked.
    #[error(
        "`{key}` was held by another holder for {waited:?}; retry, or free it first if the holder is the caller itself"
    )]
    TimedOut {
        /// The key.
        key: String,
        /// The longest wait, which has passed.
        waited: Duration,
    },

    /// Another holder has the key, and the request must not wait for it. The request already has a
    /// transaction, a connection, or the lease of a key that sorts after this one, and other
    /// requests may be waiting for that.
    #[error(
        "`{0}` is held by another holder, and this request must not wait for it, because it already has a transaction, a connection or the lease of a later key; retry, or load aggregates first and in key order"
    )]
    Held(String),

    /// The lease is gone. Either it had expired, and another holder took it over or a sweep deleted
    /// it; or an operator freed it.
    #[error("the lease of `{0}` was lost: it had expired, or was freed; load again and retry")]
    Lost(String),

    /// The row of a lease could not be deleted within its time to live. The row remains until it
    /// expires; until then no other holder can take the lease.
    #[error("the lease of `{0}` could not be released; other holders wait until it expires")]
    NotReleased(String),

    /// The database that holds the leases failed.
    #[error("the database of the leases failed: {0}; retry")]
    Database(#[from] sqlx::Error),
}

impl From<LockError> for rocket_tx::Error {
    /// Maps the error to a response: 422 for an invalid key, 409 for a lost lease, and 503 if a
    /// retry can succeed. A database error is mapped like that of any other statement.
    fn from(error: LockError) -> Self {
        let (kind, status) = match error {
            LockError::Key => ("lease-key", Status::UnprocessableEntity),
            LockError::TimedOut { .. } => ("lease-timed-out", Status::ServiceUnavailable),
            LockError::Held(_) => ("lease-held", Status::ServiceUnavailable),
            LockError::NotReleased(_) => ("lease-not-released", Status::ServiceUnavailable),
            LockError::Lost(_) => return Self::Conflict(error.to_string().into()),
            LockError::Database(error) => return Self::from(error),
        };
        Self::Problem(Box::new(Problem::new(status, kind, error.to_string())))
    }
}
