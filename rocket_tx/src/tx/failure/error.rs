//! The failure table: what can go wrong with a request's transactions, and what the client is told.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};

use super::problem::Problem;
use crate::db::{CommitError, ErrorClass, RollbackError};
use crate::tx::context::RequestContext;
use crate::tx::verdict::Outcome;

/// Why a request's transactions could not do what was asked of them.
///
/// It is what guards fail with, what settlement answers with, and what `?` makes of a
/// [`sqlx::Error`] in a handler: classified by SQLSTATE and SQLite result code, never by the text
/// of a message. As a responder it answers [`Problem`] with the status of this table; 503 comes
/// with `Retry-After`.
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::{sqlx, Error};
///
/// assert_eq!(Error::from(sqlx::Error::PoolTimedOut).status(), Status::ServiceUnavailable);
/// assert_eq!(Error::from(sqlx::Error::RowNotFound).status(), Status::NotFound);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A guard was used in a service without `Settlement`. 500.
    #[error(
        "`Settlement` is not attached; add `.attach(rocket_tx::Settlement::new())` to the launch code"
    )]
    NoSettlement,

    /// Nobody would settle this request: no fairing sees a request that Rocket cannot read, but a
    /// catcher does, and a request fairing that is attached before `Settlement` comes too early. 500.
    #[error(
        "no fairing has begun this request, and none will settle it: Rocket could not read it, or a request fairing asks that is attached before `Settlement`; attach `Settlement` first"
    )]
    NotEntered,

    /// A guard names a database that is not attached. 500.
    #[error(
        "the database `{0}` is not attached; add `.attach(rocket_tx::db::init::<{0}>())` to the launch code"
    )]
    NotAttached(&'static str),

    /// A guard of another library lacks something in the launch code. 500.
    #[error("{0}")]
    NotSetUp(Cow<'static, str>),

    /// The request's transaction is held by another guard. Drop that one first. 500.
    #[error(
        "the transaction of `{0}` is checked out by another guard of this request; drop that guard before asking again"
    )]
    CheckedOut(&'static str),

    /// A guard asks for more isolation, or more access, than the open transaction has. 500.
    #[error(
        "the open transaction of `{0}` is weaker than the guard asks for; let the stricter guard begin it"
    )]
    Weaker(&'static str),

    /// A guard asks for a transaction above READ COMMITTED, which something else in the request rules
    /// out. 500.
    #[error("a transaction of `{database}` above READ COMMITTED cannot begin: {reason}")]
    Isolation {
        /// The database.
        database: &'static str,
        /// What rules it out, and what to do.
        reason: &'static str,
    },

    /// `Read` beside an open `Tx` of the same database, or the other way round, or two `Read`s at
    /// once: a request holds one connection of a pool at most. 500.
    #[error(
        "this request already holds a connection of `{0}`; read through the open guard, or drop it first"
    )]
    SecondConnection(&'static str),

    /// A database was asked for out of the order of attachment and was not free at once; waiting
    /// could be a deadlock. 503.
    #[error(
        "`{0}` was asked for after a database that is attached behind it, and was not free; ask for databases in the order of attachment, or retry"
    )]
    OutOfOrder(&'static str),

    /// The answer has been decided: a guard, a resource, a hook or a doom came too late. 500.
    #[error("this request has been settled; what comes after it needs a transaction of its own")]
    Settled,

    /// A resource wanted to begin another transaction on the connection of one that was not rolled
    /// back. 500.
    #[error(
        "the transaction of `{0}` is not rolled back; begin another one on its connection in `rollback` alone, and join after `{0}`"
    )]
    NotOver(&'static str),

    /// Contention: BUSY, a deadlock, a serialization failure, a wait over its limit. 503.
    #[error("the database is busy: {0}; retry")]
    Busy(#[source] sqlx::Error),

    /// The connection was lost before any COMMIT was sent. 503.
    #[error("the connection to the database was lost: {0}; nothing was committed, retry")]
    ConnectionLost(#[source] sqlx::Error),

    /// No connection to the database could be opened: it is down, starting, or behind a network
    /// that does not answer. 503.
    #[error("the database cannot be reached: {0}; retry")]
    Unreachable(#[source] sqlx::Error),

    /// The database takes no writes: a standby, a server that was made read-only, a full disk. 503.
    #[error("the database takes no writes now: {0}; retry when it does")]
    NotWritable(#[source] sqlx::Error),

    /// SettleContext took longer than `settle_timeout`, and no COMMIT had been sent. 503.
    #[error(
        "settling took longer than {0:?} and nothing was committed; retry, or raise `settle_timeout`"
    )]
    SettleTimeout(Duration),

    /// The handler took longer than [`bounded`](crate::tx::guards::bounded) allows. 503.
    #[error("the handler took longer than {0:?} and was given up; nothing was committed, retry")]
    HandlerTimeout(Duration),

    /// A statement failed, the handler swallowed the error, and Postgres had given the transaction
    /// up. 500.
    #[error(
        "an earlier statement had failed and the database had aborted the transaction; let the handler return the error"
    )]
    Aborted,

    /// The transaction was over before it was settled: a raw COMMIT or ROLLBACK, or SQLite's own
    /// rollback. 500.
    #[error("the transaction had already ended; {}", if *undone { "an error that the handler ignored had rolled it back, or the handler sent COMMIT or ROLLBACK, which it must not. Nothing was changed" } else { "a handler must not send COMMIT or ROLLBACK, and what it committed by itself stays" })]
    Ended {
        /// Nothing of it stays: SQLite, where a commit that is not ours is refused. On Postgres
        /// nobody can say, and the outcome is `unknown`.
        undone: bool,
    },

    /// A constraint refused, at the statement or, deferred, at COMMIT. 409.
    #[error("a constraint refused the change{}", .source.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Constraint {
        /// The constraint, where the backend names it.
        name: Option<String>,
        /// What the database said, where it was asked.
        source: Option<sqlx::Error>,
    },

    /// `fetch_one` found nothing. 404.
    #[error("no such row")]
    NotFound,

    /// Somebody else was first: a sequence, a version or a lease is taken. 409.
    #[error("{0}")]
    Conflict(Cow<'static, str>),

    /// A resource refused, for a reason of its own.
    #[error("{reason}")]
    Refused {
        /// The status to answer with, from 400 to 599. A refusal is never told as a success: any
        /// other becomes a 500, and is logged.
        status: Status,
        /// Shown to the client.
        reason: Cow<'static, str>,
    },

    /// `outstanding.doom(status, reason)` was called.
    #[error("{reason}")]
    Doomed {
        /// The status to answer with, from 400 to 599; any other becomes a 500, and is logged.
        status: Status,
        /// Shown to the client.
        reason: Cow<'static, str>,
    },

    /// The response had a status below 200, which ends no request: HTTP servers send another one in
    /// its place. 500.
    #[error("the service answered with the status {}, which is not final; nothing was changed", .0.code)]
    NotFinal(Status),

    /// A guard was still held when the response was ready. 500.
    #[error("the transaction of {} was still in use when the response was ready; guards must not outlive their handler", .0.join(", "))]
    Leaked(Vec<String>),

    /// Something panicked in this request. 500.
    #[error("something panicked; see the log")]
    Panicked,

    /// COMMIT was sent and what became of it is not known. 500.
    #[error("it is not known whether {} was committed; check before you retry", .0.join(", "))]
    Unknown(Vec<String>),

    /// One database committed, a later one refused. 500.
    #[error("committed in {}, but not in {}; the two must be reconciled by hand", committed.join(", "), refused.join(", "))]
    Partial {
        /// What was committed.
        committed: Vec<String>,
        /// What was not.
        refused: Vec<String>,
    },

    /// Any other error of the database. 500.
    #[error("the database failed: {0}")]
    Database(#[source] sqlx::Error),
}

impl Error {
    /// The status that a client is answered with.
    pub fn status(&self) -> Status {
        match self {
            Self::OutOfOrder(_)
            | Self::Busy(_)
            | Self::ConnectionLost(_)
            | Self::Unreachable(_)
            | Self::NotWritable(_)
            | Self::HandlerTimeout(_)
            | Self::SettleTimeout(_) => Status::ServiceUnavailable,
            Self::Constraint { .. } | Self::Conflict(_) => Status::Conflict,
            Self::NotFound => Status::NotFound,
            Self::Refused { status, .. } | Self::Doomed { status, .. } if is_failure(*status) => {
                *status
            }
            _ => Status::InternalServerError,
        }
    }

    /// What clients are told: never SQL, a path, or a row's values.
    pub fn problem(&self) -> Problem {
        let (kind, detail): (_, Cow<'static, str>) = match self {
            Self::Busy(_) => (
                "busy",
                "The database is busy with other requests. Nothing was changed; retry.".into(),
            ),
            Self::ConnectionLost(_) => (
                "connection-lost",
                "The connection to the database was lost. Nothing was changed; retry.".into(),
            ),
            Self::Unreachable(_) => (
                "unreachable",
                "The database cannot be reached. Nothing was changed; retry.".into(),
            ),
            Self::NotWritable(_) => (
                "not-writable",
                "The database takes no writes now. Nothing was changed; retry.".into(),
            ),
            Self::Constraint {
                name: Some(name), ..
            } => (
                "constraint",
                format!("The constraint `{name}` refuses this change.").into(),
            ),
            Self::Constraint { name: None, .. } => (
                "constraint",
                "A constraint of the database refuses this change.".into(),
            ),
            Self::Database(_) => (
                "database",
                "The database failed. Nothing was changed.".into(),
            ),
            Self::NoSettlement => ("no-settlement", self.to_string().into()),
            Self::NotEntered => ("not-entered", self.to_string().into()),
            Self::NotAttached(_) => ("not-attached", self.to_string().into()),
            Self::NotSetUp(_) => ("not-set-up", self.to_string().into()),
            Self::CheckedOut(_) => ("checked-out", self.to_string().into()),
            Self::Weaker(_) => ("weaker", self.to_string().into()),
            Self::Isolation { .. } => ("isolation", self.to_string().into()),
            Self::SecondConnection(_) => ("second-connection", self.to_string().into()),
            Self::OutOfOrder(_) => ("out-of-order", self.to_string().into()),
            Self::NotOver(_) => ("not-over", self.to_string().into()),
            Self::Settled => ("settled", self.to_string().into()),
            Self::HandlerTimeout(_) => ("handler-timeout", self.to_string().into()),
            Self::SettleTimeout(_) => ("settle-timeout", self.to_string().into()),
            Self::Aborted => ("aborted", self.to_string().into()),
            Self::Ended { .. } => ("ended", self.to_string().into()),
            Self::NotFound => ("not-found", self.to_string().into()),
            Self::Conflict(_) => ("conflict", self.to_string().into()),
            Self::Refused { .. } => ("refused", self.to_string().into()),
            Self::Doomed { .. } => ("doomed", self.to_string().into()),
            Self::NotFinal(_) => ("not-final", self.to_string().into()),
            Self::Leaked(_) => ("leaked", self.to_string().into()),
            Self::Panicked => (
                "panicked",
                "Something panicked. Nothing was changed.".into(),
            ),
            Self::Unknown(_) => ("unknown", self.to_string().into()),
            Self::Partial { .. } => ("partial", self.to_string().into()),
        };
        Problem::new(self.status(), kind, detail)
    }

    /// Whether a database is away, which is logged once when it begins and not for every request.
    pub(in crate::tx) fn is_known_trouble(&self, request: &Request<'_>) -> bool {
        // What a statement of the handler's met is news.
        let is_known = matches!(
            self,
            Self::Unreachable(_) | Self::NotWritable(sqlx::Error::Io(_))
        );
        if let (true, Some(context)) = (is_known, RequestContext::of(request)) {
            context.is_known_trouble.store(true, Ordering::Relaxed);
        }
        is_known
    }

    /// Says in the log that somebody gave a failure the status of a success.
    pub(in crate::tx) fn report_success(&self) {
        if let Self::Refused { status, reason } | Self::Doomed { status, reason } = self
            && !is_failure(*status)
        {
            tracing::error!(
                status = status.code, %reason,
                "a refusal cannot be answered with this status; it becomes a 500: give it one from 400 to 599"
            );
        }
    }

    /// What really happened, when a request ended in this error.
    pub(in crate::tx) fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) | Self::Ended { undone: false } => Outcome::Unknown,
            Self::Partial { .. } => Outcome::Partial,
            _ => Outcome::RolledBack,
        }
    }

    /// What a transaction's refusal means for the request. `database` is named to the client if what
    /// became of it is unknown.
    pub fn of_commit(error: CommitError, database: &str) -> Self {
        match error {
            CommitError::Aborted => Self::Aborted,
            CommitError::Ended { undone } => Self::Ended { undone },
            CommitError::ConstraintBroken => Self::Constraint {
                name: None,
                source: None,
            },
            CommitError::Refused(error) => Self::from(error),
            CommitError::Lost(error) => Self::ConnectionLost(error),
            CommitError::Unknown(_) | CommitError::NotDurable(_) => {
                Self::Unknown(vec![database.to_owned()])
            }
        }
    }
}

impl From<RollbackError> for Error {
    fn from(error: RollbackError) -> Self {
        match error {
            RollbackError::Ended { undone } => Self::Ended { undone },
            RollbackError::Lost(error) => Self::ConnectionLost(error),
        }
    }
}

/// Whether it tells a client that nothing was done.
fn is_failure(status: Status) -> bool {
    (400..600).contains(&status.code)
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match ErrorClass::of(&error) {
            ErrorClass::NotFound => Self::NotFound,
            ErrorClass::Busy => Self::Busy(error),
            ErrorClass::Unreachable => Self::Unreachable(error),
            ErrorClass::Lost => Self::ConnectionLost(error),
            ErrorClass::NotWritable => Self::NotWritable(error),
            ErrorClass::Aborted => Self::Aborted,
            ErrorClass::Ended { undone } => Self::Ended { undone },
            ErrorClass::Constraint => Self::Constraint {
                name: error
                    .as_database_error()
                    .and_then(|error| error.constraint())
                    .map(str::to_owned),
                source: Some(error),
            },
            ErrorClass::Other => Self::Database(error),
        }
    }
}

impl<'r> Responder<'r, 'static> for Error {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        self.report_success();
        let id = RequestContext::of(request).map(|context| context.id);
        if self.is_known_trouble(request) {
            tracing::debug!(request = ?id, error = %Chain(&self), "a request failed");
        } else if self.status().class().is_server_error() {
            tracing::warn!(request = ?id, error = %Chain(&self), "a request failed");
        }
        self.problem().respond_to(request)
    }
}

/// An error with its causes, for the log. Many an error repeats its cause; it is written once.
pub(in crate::tx) struct Chain<'a>(pub(in crate::tx) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let reason = error.to_string();
            if !text.contains(&reason) {
                text.push_str(": ");
                text.push_str(&reason);
            }
            cause = error.source();
        }
        f.write_str(&text)
    }
}
