//! The failure table: what can go wrong with a request's transactions, and what the client
//! receives.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};

use super::problem::Problem;
use crate::db::{Advised, CommitError, ErrorClass, RollbackError, WAITS_FOR_ITSELF, is_conflict};
use crate::tx::context::RequestContext;
use crate::tx::verdict::Outcome;

/// A failure of a request's transactions.
///
/// Guards fail with this error, and settlement reports it. In a handler, `?` converts a
/// [`sqlx::Error`] into an `Error`. The conversion uses SQLSTATE and the SQLite result code, never
/// the text of a message. As a responder, an `Error` sends a [`Problem`] with the status that the
/// variant's documentation gives. A 503 carries `Retry-After`.
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

    /// A guard was used in a request that `Settlement` has not seen. There are two causes. Rocket
    /// could not parse the request: then it runs a catcher, but no request fairing. Or the guard
    /// was used in a request fairing that runs before `Settlement`. 500.
    #[error(
        "`Settlement` has not seen this request: either Rocket could not parse it (no fairing runs then), or a request fairing that runs before `Settlement` used a guard; attach `Settlement` before that fairing"
    )]
    NotEntered,

    /// A guard names a database that is not attached. 500.
    #[error(
        "the database `{0}` is not attached; add `.attach(rocket_tx::db::init::<{0}>())` to the launch code"
    )]
    NotAttached(&'static str),

    /// A guard of another library needs something that the launch code does not set up. 500.
    #[error("{0}")]
    NotSetUp(Cow<'static, str>),

    /// Another guard of the request holds the transaction. Drop that guard first. 500.
    #[error(
        "the transaction of `{0}` is checked out by another guard of this request; drop that guard before you take another one. A handler that loads aggregates takes `Begin`, and begins after it has loaded them"
    )]
    CheckedOut(&'static str),

    /// A guard needs a higher isolation level, or more access, than the open transaction has. 500.
    #[error(
        "the open transaction of `{0}` has a lower isolation level or less access than is needed now; begin the transaction with the stricter guard"
    )]
    Weaker(&'static str),

    /// A guard needs a transaction above READ COMMITTED, but something else in the request forbids
    /// that. 500.
    #[error("a transaction of `{database}` above READ COMMITTED cannot begin: {reason}")]
    Isolation {
        /// The database.
        database: &'static str,
        /// What forbids it, and what to do.
        reason: &'static str,
    },

    /// The request already holds a connection of this database: by a `Tx` when it takes a `Read`,
    /// by a `Read` when it takes a `Tx`, or by another `Read`. A request holds at most one
    /// connection of a pool. 500.
    #[error(
        "this request already holds a connection of `{0}`, and may have only one; a handler that has a `Tx` reads through it, and takes no `Read` of the same database; a guard of the service that reads must drop its `Read` before it returns, and stand before `Tx` in the handler's arguments"
    )]
    SecondConnection(&'static str),

    /// Code opened a transaction beside the one that it holds itself, and a SQLite file has one
    /// connection that writes. 500.
    #[error("`{0}` {WAITS_FOR_ITSELF}")]
    WaitsForItself(&'static str),

    /// [`Begin::retrying`](crate::Begin::retrying) was called when the request already had a
    /// transaction of this database. What was done in it could not be done again. 500.
    #[error(
        "this request has begun a transaction of `{0}` before `retrying`, and a new attempt could not repeat what was done in it; begin it in the closure, with a `Begin` guard"
    )]
    BegunBefore(&'static str),

    /// Code of the request used a transaction or added something to be settled while
    /// [`Begin::retrying`](crate::Begin::retrying) of this database was running, and the code does
    /// not belong to its closure. A failed attempt would undo that too. 500.
    #[error(
        "`retrying` of `{0}` is running in this request, and a failed attempt would undo what is done beside it; do it in the closure, not in a task that the closure spawns, or after `retrying` has returned"
    )]
    Retrying(&'static str),

    /// The request took databases out of the order of attachment, and no connection was free at
    /// once. Waiting could cause a deadlock. 503.
    #[error(
        "no connection of `{0}` was free, and this request may not wait for one, because it holds a connection of a database that is attached after `{0}`; take databases in the order of attachment, or retry"
    )]
    OutOfOrder(&'static str),

    /// A guard, a resource, a hook or a doom came after the verdict. 500.
    #[error("this request has already been settled; use a separate transaction for later work")]
    Settled,

    /// A resource called `begin_after_rollback` before the request's transaction was rolled back.
    /// 500.
    #[error(
        "the transaction of `{0}` is not rolled back yet; call `begin_after_rollback` only in `rollback`, and let the resource join after `{0}`"
    )]
    NotOver(&'static str),

    /// Contention: BUSY, a deadlock, a serialization failure, or a wait that exceeded its limit.
    /// 503.
    #[error("the database is busy: {0}; retry")]
    Busy(#[source] sqlx::Error),

    /// The connection was lost before any COMMIT was sent. 503.
    #[error("the connection to the database was lost: {0}; nothing was committed, retry")]
    ConnectionLost(#[source] sqlx::Error),

    /// No connection to the database could be opened: the server is down or starting, or the
    /// network does not respond. 503.
    #[error("the database cannot be reached: {0}; retry")]
    Unreachable(#[source] sqlx::Error),

    /// The database takes no writes: it is a standby or a read-only server, or its disk is full.
    /// 503.
    #[error("the database takes no writes now: {0}; retry when it does")]
    NotWritable(#[source] sqlx::Error),

    /// Settlement took longer than `settle_timeout`, and no COMMIT had been sent. 503.
    #[error(
        "settlement took longer than {0:?} and nothing was committed; retry, or raise `settle_timeout`"
    )]
    SettleTimeout(Duration),

    /// The handler took longer than [`bounded`](crate::tx::guards::bounded) allows. 503.
    #[error("the handler took longer than {0:?} and was abandoned; nothing was committed, retry")]
    HandlerTimeout(Duration),

    /// Several databases were written, and one of them cannot prepare its transaction, which an
    /// atomic commit needs. 500.
    #[error(
        "the transaction of `{database}` cannot be prepared, which a request that writes several \
         databases needs: {source}; use no temporary tables, LISTEN, NOTIFY or cursors WITH HOLD \
         there, or set `atomic_commit = \"off\"`"
    )]
    CannotPrepare {
        /// The name of the database.
        database: String,
        /// The error of the database.
        source: sqlx::Error,
    },

    /// Several databases were written, they cannot commit all or none, and `atomic_commit` is
    /// `"required"`. 500.
    #[error(
        "{} cannot be committed all or none, and `atomic_commit` is \"required\"; write only one of \
         them in a request, or set `atomic_commit = \"auto\"`", .0.join(" and ")
    )]
    NotAtomic(Vec<String>),

    /// The commit of several databases took so long that another process has rolled it back. 503.
    #[error(
        "the commit of several databases took too long, and another process has rolled it back; \
         retry"
    )]
    DecidedToAbort,

    /// A statement failed, the handler ignored the error, and Postgres had aborted the transaction.
    /// 500.
    #[error(
        "an earlier statement failed and the database aborted the transaction; let the handler return the error of that statement"
    )]
    Aborted,

    /// The transaction had ended before it was settled: the handler sent COMMIT or ROLLBACK, or
    /// SQLite rolled back by itself. 500.
    #[error("the transaction ended before it was settled; {}", if *undone { "nothing was changed. Either the database rolled it back after an error: let the handler return that error. Or the handler sent COMMIT or ROLLBACK: remove that statement" } else { "a handler must not send COMMIT or ROLLBACK. Changes that it committed itself remain: check before you retry" })]
    Ended {
        /// `true` if no change of the transaction remains: SQLite refuses every COMMIT except that
        /// of settlement. `false` if changes may remain, as on Postgres; then the outcome is
        /// `unknown`.
        undone: bool,
    },

    /// The change violates a constraint. The database reports this at the statement, or at COMMIT
    /// if the constraint is deferred. 409.
    #[error("the change violates a constraint of the database{}", .source.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Constraint {
        /// The name of the constraint, if the database reports it.
        name: Option<String>,
        /// The error of the database. `None` if the violation was detected without one.
        source: Option<sqlx::Error>,
    },

    /// `fetch_one` found no row. 404.
    #[error("no such row")]
    NotFound,

    /// Another request or process was first: a sequence number, a version or a lease is taken. 409.
    #[error("{0}")]
    Conflict(Cow<'static, str>),

    /// A resource refused the request, with its own status and reason.
    #[error("{reason}")]
    Refused {
        /// The status of the response, from 400 to 599. A refusal is never reported as a success:
        /// any other status becomes a 500 and is logged.
        status: Status,
        /// Shown to the client.
        reason: Cow<'static, str>,
    },

    /// A library refused the request with a problem of its own, which has its status.
    #[error("{}", .0.detail())]
    Problem(Box<Problem>),

    /// An earlier request has done the work. Its [stored
    /// response](crate::tx::Outstanding::respond_with) is sent, whatever the handler returns. 409.
    #[error("an earlier request has done the work, and its response is sent; return this error")]
    Replayed,

    /// The body of the response was to be stored, and could not be read. 500.
    #[error("the body of the response could not be read; nothing was changed")]
    UnreadableBody,

    /// `outstanding.doom(status, reason)` was called.
    #[error("{reason}")]
    Doomed {
        /// The status of the response, from 400 to 599. Any other status becomes a 500 and is
        /// logged.
        status: Status,
        /// Shown to the client.
        reason: Cow<'static, str>,
    },

    /// The response had a status below 200. Such a status is not final: HTTP servers send another
    /// response instead. 500.
    #[error("the response had the status {}, which is not a final status; nothing was changed", .0.code)]
    NotFinal(Status),

    /// A guard was still held when the response was ready. 500.
    #[error("{}; a guard must not outlive its handler: let work that follows the response run in `outstanding.after_commit`, or in a transaction of its own", leaked(.0))]
    Leaked(Vec<String>),

    /// Code of this request panicked. 500.
    #[error("code of this request panicked; see the log")]
    Panicked,

    /// COMMIT was sent, and it is unknown whether it took effect. 500.
    #[error("it is unknown whether {} was committed; check before you retry", .0.join(", "))]
    Unknown(Vec<String>),

    /// One database committed, and a later one refused. 500.
    #[error("the changes were committed in {}, but not in {}; reconcile the databases by hand before you retry", committed.join(", "), refused.join(", "))]
    Partial {
        /// The databases that were committed.
        committed: Vec<String>,
        /// The databases that were not committed.
        refused: Vec<String>,
    },

    /// Any other error of the database. 500.
    #[error("the database reported an error: {}", Advised(.0))]
    Database(#[source] sqlx::Error),
}

impl Error {
    /// Returns an [`Error::Refused`]: the service refuses the request with this status, from 400 to
    /// 599, and this reason, which the client receives.
    ///
    /// ```
    /// use rocket::http::Status;
    /// use rocket_tx::Error;
    ///
    /// let error = Error::refused(Status::UnprocessableEntity, "the title is empty");
    /// assert_eq!(error.status(), Status::UnprocessableEntity);
    /// ```
    pub fn refused(status: Status, reason: impl Into<Cow<'static, str>>) -> Self {
        let reason = reason.into();
        Self::Refused { status, reason }
    }

    /// Returns the status of the response.
    pub fn status(&self) -> Status {
        match self {
            Self::OutOfOrder(_)
            | Self::Busy(_)
            | Self::ConnectionLost(_)
            | Self::Unreachable(_)
            | Self::NotWritable(_)
            | Self::HandlerTimeout(_)
            | Self::SettleTimeout(_)
            | Self::DecidedToAbort => Status::ServiceUnavailable,
            Self::Constraint { .. } | Self::Conflict(_) | Self::Replayed => Status::Conflict,
            Self::Problem(problem) if is_failure(problem.status()) => problem.status(),
            Self::NotFound => Status::NotFound,
            Self::Refused { status, .. } | Self::Doomed { status, .. } if is_failure(*status) => {
                *status
            }
            _ => Status::InternalServerError,
        }
    }

    /// Returns the problem document that the client receives. It never contains SQL, a path, or the
    /// values of a row.
    pub fn problem(&self) -> Problem {
        if let Self::Problem(problem) = self
            && is_failure(problem.status())
        {
            return Problem::clone(problem);
        }
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
                format!("This change violates the constraint `{name}` of the database.").into(),
            ),
            Self::Constraint { name: None, .. } => (
                "constraint",
                "This change violates a constraint of the database.".into(),
            ),
            Self::Database(_) => (
                "database",
                "The database reported an error. Nothing was changed.".into(),
            ),
            Self::NoSettlement => ("no-settlement", MISUSE.into()),
            Self::NotEntered => ("not-entered", MISUSE.into()),
            Self::NotAttached(_) => ("not-attached", MISUSE.into()),
            Self::NotSetUp(_) => ("not-set-up", MISUSE.into()),
            Self::CheckedOut(_) => ("checked-out", MISUSE.into()),
            Self::Weaker(_) => ("weaker", MISUSE.into()),
            Self::Isolation { .. } => ("isolation", MISUSE.into()),
            Self::SecondConnection(_) => ("second-connection", MISUSE.into()),
            Self::WaitsForItself(_) => ("waits-for-itself", MISUSE.into()),
            Self::BegunBefore(_) => ("begun-before", MISUSE.into()),
            Self::Retrying(_) => ("retrying", MISUSE.into()),
            Self::OutOfOrder(_) => ("out-of-order", self.to_string().into()),
            Self::NotOver(_) => ("not-over", MISUSE.into()),
            Self::Settled => ("settled", MISUSE.into()),
            Self::HandlerTimeout(_) => ("handler-timeout", self.to_string().into()),
            Self::SettleTimeout(_) => ("settle-timeout", self.to_string().into()),
            Self::CannotPrepare { .. } => (
                "cannot-prepare",
                "A transaction of this request cannot be committed together with another one. \
                 Nothing was changed."
                    .into(),
            ),
            Self::NotAtomic(_) => (
                "not-atomic",
                "This request changes several databases that cannot be committed all or none. \
                 Nothing was changed."
                    .into(),
            ),
            Self::DecidedToAbort => ("decided-to-abort", self.to_string().into()),
            Self::Aborted => ("aborted", self.to_string().into()),
            Self::Ended { .. } => ("ended", self.to_string().into()),
            Self::NotFound => ("not-found", self.to_string().into()),
            Self::Conflict(_) => ("conflict", self.to_string().into()),
            Self::Problem(problem) => ("refused", problem.detail().to_owned().into()),
            Self::Replayed => ("replayed", self.to_string().into()),
            Self::UnreadableBody => ("unreadable-body", self.to_string().into()),
            Self::Refused { .. } => ("refused", self.to_string().into()),
            Self::Doomed { .. } => ("doomed", self.to_string().into()),
            Self::NotFinal(_) => ("not-final", self.to_string().into()),
            Self::Leaked(databases) => ("leaked", leaked(databases).into()),
            Self::Panicked => (
                "panicked",
                "The service panicked during this request; `outcome` says whether anything was changed."
                    .into(),
            ),
            Self::Unknown(_) => ("unknown", self.to_string().into()),
            Self::Partial { .. } => ("partial", self.to_string().into()),
        };
        Problem::new(self.status(), kind, detail)
    }

    /// Returns `true` if the error means that a database is unavailable, and records this in the
    /// request's context. Such a failure is logged at the debug level only: on Postgres,
    /// `db::health` logs once when the database becomes unavailable, not for each request.
    pub(in crate::tx) fn note_known_outage(&self, request: &Request<'_>) -> bool {
        // `NotWritable` contains `Io` if this library has detected the outage at BEGIN. If a
        // handler's statement failed, it contains `Database`, and each such request is logged.
        let is_known = matches!(
            self,
            Self::Unreachable(_) | Self::NotWritable(sqlx::Error::Io(_))
        );
        if let (true, Some(context)) = (is_known, RequestContext::of(request)) {
            context.has_known_outage.store(true, Ordering::Relaxed);
        }
        is_known
    }

    /// Logs an error if a refusal or a doom has a status that is not a failure.
    pub(in crate::tx) fn log_wrong_status(&self) {
        let refused = match self {
            Self::Refused { status, reason } | Self::Doomed { status, reason } => {
                Some((*status, &**reason))
            }
            Self::Problem(problem) => Some((problem.status(), problem.detail())),
            _ => None,
        };
        if let Some((status, reason)) = refused.filter(|(status, _)| !is_failure(*status)) {
            tracing::error!(
                status = status.code, %reason,
                "this status is not a failure, so the client receives a 500; refuse or doom with a status from 400 to 599"
            );
        }
    }

    /// Returns the outcome of a request that ended with this error.
    pub(in crate::tx) fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) | Self::Ended { undone: false } => Outcome::Unknown,
            Self::Partial { .. } => Outcome::Partial,
            _ => Outcome::RolledBack,
        }
    }

    /// Returns `true` if the same work may succeed when it is begun anew at once: a serialization
    /// failure, a deadlock, or a SQLite file that another process has locked. Nothing was changed.
    pub(in crate::tx) fn is_conflict(&self) -> bool {
        matches!(self, Self::Busy(error) if is_conflict(error))
    }

    /// Converts the error of a COMMIT into the error of the request. If the outcome is unknown, the
    /// error names `database` to the client.
    pub fn of_commit(error: CommitError, database: &str) -> Self {
        match error {
            CommitError::Aborted => Self::Aborted,
            CommitError::Ended { undone } => Self::Ended { undone },
            CommitError::ConstraintBroken => Self::Constraint {
                name: None,
                source: None,
            },
            CommitError::Refused(error) => Self::from(error),
            CommitError::CannotPrepare(source) => Self::CannotPrepare {
                database: database.to_owned(),
                source,
            },
            CommitError::DecidedToAbort => Self::DecidedToAbort,
            CommitError::Lost(error) => Self::ConnectionLost(error),
            CommitError::Unknown(_) | CommitError::NotDurable(_) => {
                Self::Unknown(vec![database.to_owned()])
            }
        }
    }
}

impl From<CommitError> for Error {
    /// Converts the error as [`of_commit`](Self::of_commit) does, for a database without a name.
    fn from(error: CommitError) -> Self {
        Self::of_commit(error, "the database")
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

/// Tells the client that the service made a mistake. The log explains the mistake to its developers.
const MISUSE: &str = "The service uses its own transactions wrongly; its log explains the mistake, under the id of this request.";

fn leaked(databases: &[String]) -> String {
    let databases = databases.join(", ");
    format!("the transaction of {databases} was still in use when the response was ready")
}

/// Returns `true` if `status` tells the client that the request failed.
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
            ErrorClass::WaitsForItself(database) => Self::WaitsForItself(database),
            ErrorClass::Other => Self::Database(error),
        }
    }
}

impl<'r> Responder<'r, 'static> for Error {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        self.log_wrong_status();
        let id = RequestContext::of(request).map(|context| tracing::field::display(context.id));
        if self.note_known_outage(request) {
            tracing::debug!(request = id, error = %Chain(&self), "a request failed");
        } else if self.status().class().is_server_error() {
            tracing::warn!(request = id, error = %Chain(&self), "a request failed");
        }
        self.problem().respond_to(request)
    }
}

/// Displays an error with its causes, for the log. A cause that the text already contains is not
/// repeated.
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
