//! The meaning of database errors, for guards, sessions and settlement.
//!
//! Errors are classified by SQLSTATE, severity and SQLite result code, never by the text of a
//! message. See <https://www.postgresql.org/docs/current/errcodes-appendix.html> and
//! <https://www.sqlite.org/rescode.html>.

use std::time::Duration;
use std::{fmt, io};

/// The meaning of a database error for the request that received it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Contention or overload: SQLite's BUSY or LOCKED, a deadlock, a serialization failure, the
    /// timeout of a lock or a statement, no free connection, too little memory.
    Busy,
    /// No connection could be opened: the server is down or starting, the network does not work, or
    /// the SQLite file is no longer at its path.
    Unreachable,
    /// The session ended while it was in use, or the pool is closed.
    Lost,
    /// The database takes no writes now: a standby, a read-only server, a full disk.
    NotWritable,
    /// Postgres has aborted the transaction because of an earlier error.
    Aborted,
    /// The transaction has ended, and settlement did not end it.
    Ended {
        /// `true` if it is certain that nothing of the transaction is committed.
        undone: bool,
    },
    /// A constraint is violated.
    Constraint,
    /// The caller waits for what it holds itself: the one connection that writes to this database.
    WaitsForItself(&'static str),
    /// `fetch_one` found no row.
    NotFound,
    /// Any other error: a mistake in the SQL, in the code, or in the driver.
    Other,
}

impl ErrorClass {
    /// Classifies the error of a statement.
    pub fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::PoolTimedOut => Self::Busy,
            sqlx::Error::Io(error) if mark(error).is_some() => match mark(error) {
                Some(Mark::NotWritable(_)) => Self::NotWritable,
                Some(Mark::WaitsForItself(database)) => Self::WaitsForItself(database),
                _ => Self::Unreachable,
            },
            // A TLS handshake takes place only while a connection is opened.
            sqlx::Error::Tls(_) => Self::Unreachable,
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                Self::NotWritable
            }
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Self::Lost,
            sqlx::Error::Database(error) => match code(&**error) {
                Some(Code::Postgres { fatal, state }) => of_sqlstate(fatal, &state),
                Some(Code::Sqlite(code)) => of_sqlite(code),
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// Returns `true` if the session that returned this error cannot be used again: the session has
/// ended, or the driver no longer understands the replies.
pub(crate) fn ends_session(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Protocol(_)) || is_lost(error)
}

/// Returns `true` if the session that returned this error has ended.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(
        ErrorClass::of(error),
        ErrorClass::Lost | ErrorClass::Unreachable
    )
}

/// Returns `true` if another session may succeed where this session failed at its first statement.
/// This session may have died while it was idle, or its server may no longer be the primary.
pub(crate) fn may_be_stale(error: &sqlx::Error) -> bool {
    ends_session(error) || ErrorClass::of(error) == ErrorClass::NotWritable
}

/// Returns `true` if the same work may succeed when it is begun anew at once: after a serialization
/// failure or a deadlock, or if another process has locked the SQLite file.
///
/// Not after a timeout: the next attempt would take as long.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return false;
    };
    match code(&**error) {
        // serialization_failure, deadlock_detected
        Some(Code::Postgres { fatal, state }) => {
            !fatal && matches!(state.as_str(), "40001" | "40P01")
        }
        Some(Code::Sqlite(code)) => code & 0xff == primary::BUSY,
        None => false,
    }
}

/// Returns `true` if this error, received as the reply to COMMIT, proves that nothing was
/// committed.
///
/// If Postgres itself replies to COMMIT with severity ERROR, nothing was committed: after the
/// commit record is written, every error is a PANIC. But a connection pooler or a proxy also
/// replies with an error when it has lost the server, and then the outcome is unknown. Therefore
/// this function accepts only codes that no pooler or proxy sends. After any other code the outcome
/// is unknown.
pub(crate) fn is_certain_refusal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return false;
    };
    match code(&**error) {
        Some(Code::Postgres { fatal, state }) => !fatal && is_certain_sqlstate(&state),
        Some(Code::Sqlite(code)) => is_certain_sqlite(code),
        None => false,
    }
}

/// Displays an error, with advice if it is usually a mistake in the service.
pub(crate) struct Advised<'a>(pub(crate) &'a sqlx::Error);

impl fmt::Display for Advised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        match advice_on(self.0) {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

fn advice_on(error: &sqlx::Error) -> Option<&'static str> {
    const READ_ONLY: &str = "a `Read`, a `Tx<D, ReadOnly>` and, on SQLite, a `Connection` of \
         rocket_db_pools cannot write: take a `Tx` or a `Begin`";
    const NO_TABLE: &str = "if a migration creates it, give the migrations to \
         `db::init::<D>().migrations(..)`, and build the program again after a new one";

    let error = error.as_database_error()?;
    match code(error)? {
        // read_only_sql_transaction, undefined_table
        Code::Postgres { state, .. } if state == "25006" => Some(READ_ONLY),
        Code::Postgres { state, .. } if state == "42P01" => Some(NO_TABLE),
        Code::Sqlite(primary::READONLY) => Some(READ_ONLY),
        // The code of a missing table is that of every mistake in SQL. The text changes only the advice.
        Code::Sqlite(primary::ERROR) if error.message().starts_with("no such table") => {
            Some(NO_TABLE)
        }
        _ => None,
    }
}

/// Returns the SQLSTATE of an error of opening a database, also if the error was retried.
pub(super) fn sqlstate_on_opening(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Io(io) => match (mark(io), io.get_ref().and_then(|it| it.downcast_ref())) {
            (Some(Mark::Connecting(cause)), _) => sqlstate(cause),
            (_, Some(Retried { state, .. })) => state.clone(),
            _ => None,
        },
        _ => sqlstate(error),
    }
}

/// The last error of several attempts to connect.
#[derive(Debug, thiserror::Error)]
#[error("{text} (retried for {limit:?})")]
pub(super) struct Retried {
    text: String,
    state: Option<String>,
    limit: Duration,
}

impl Retried {
    #[cfg(feature = "postgres")]
    pub(super) fn of(last: &sqlx::Error, limit: Duration) -> Self {
        Self {
            text: describe(last),
            state: sqlstate(last),
            limit,
        }
    }
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Marks an error as an error of opening a connection, so that its class is
/// [`ErrorClass::Unreachable`]. A server that is starting, stopping or down causes many different
/// errors. `PoolClosed` and too_many_connections are not marked.
///
/// `PoolTimedOut` is marked too. Pass it only if the wait was for the server, and not for
/// connections that other requests held.
pub(crate) fn while_connecting(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::PoolClosed => error,
        // too_many_connections: the server is up, but others must disconnect first.
        sqlx::Error::Database(ref refusal) if refusal.code().as_deref() == Some("53300") => error,
        sqlx::Error::Io(ref marked) if mark(marked).is_some() => error,
        error => {
            let kind = match &error {
                sqlx::Error::Io(error) => error.kind(),
                sqlx::Error::PoolTimedOut => io::ErrorKind::TimedOut,
                _ => io::ErrorKind::Other,
            };
            sqlx::Error::Io(io::Error::new(kind, Mark::Connecting(error)))
        }
    }
}

/// Marks the error of a BEGIN with READ WRITE as [`ErrorClass::NotWritable`], if the error means
/// that the server takes no writes. A standby assigns no transaction ids and refuses `READ WRITE`.
#[cfg(feature = "postgres")]
pub(crate) fn while_beginning_to_write(error: sqlx::Error) -> sqlx::Error {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        // object_not_in_prerequisite_state, feature_not_supported, read_only_sql_transaction
        Some("55000" | "0A000" | "25006") => not_writable(error.to_string()),
        _ => error,
    }
}

/// Creates an error of class [`ErrorClass::NotWritable`].
#[cfg(feature = "postgres")]
pub(crate) fn not_writable(reason: String) -> sqlx::Error {
    let kind = io::ErrorKind::ReadOnlyFilesystem;
    sqlx::Error::Io(io::Error::new(kind, Mark::NotWritable(reason)))
}

/// Creates an error of class [`ErrorClass::WaitsForItself`].
#[cfg(feature = "sqlite")]
pub(crate) fn waits_for_itself(database: &'static str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::other(Mark::WaitsForItself(database)))
}

/// The text of [`ErrorClass::WaitsForItself`], after the name of the database.
pub(crate) const WAITS_FOR_ITSELF: &str = "already has an open transaction of this request or of the \
     code around this call, and a SQLite file has one connection that writes: this would wait for \
     itself; write through the transaction that is open, or let the work run after the request is \
     settled, in a hook of `outstanding.after_settlement`";

/// A mark on an error whose code alone does not show its class. A mark is wrapped in a
/// [`sqlx::Error::Io`], because sqlx has no variant for marks.
#[derive(Debug, thiserror::Error)]
enum Mark {
    #[error("cannot connect: {}", describe(.0))]
    Connecting(#[source] sqlx::Error),
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    #[error("{0}")]
    NotWritable(String),
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    #[error("`{0}` {WAITS_FOR_ITSELF}")]
    WaitsForItself(&'static str),
}

/// Returns the text of an error inside a mark.
///
/// sqlx's text of `PoolTimedOut` says that other users of the pool hold all connections; here the
/// server did not reply. An I/O error is printed without sqlx's prefix, because sqlx prints that
/// prefix already before the mark.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => "the database did not reply in time".into(),
        sqlx::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

fn mark(error: &io::Error) -> Option<&Mark> {
    error.get_ref()?.downcast_ref()
}

enum Code {
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Postgres {
        /// Severity FATAL or PANIC: the server or a pooler ends the session with this error.
        fatal: bool,
        state: String,
    },
    Sqlite(i32),
}

fn code(error: &dyn sqlx::error::DatabaseError) -> Option<Code> {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        use sqlx::postgres::PgSeverity;

        return Some(Code::Postgres {
            fatal: matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic),
            state: error.code().to_owned(),
        });
    }
    error.code()?.parse().ok().map(Code::Sqlite)
}

fn of_sqlstate(fatal: bool, state: &str) -> ErrorClass {
    match state {
        // too_many_connections. It is FATAL too, but a retry can succeed when others disconnect.
        "53300" => ErrorClass::Busy,
        // cannot_connect_now, sqlclient_unable_to_establish_sqlconnection,
        // sqlserver_rejected_establishment_of_sqlconnection
        "57P03" | "08001" | "08004" => ErrorClass::Unreachable,
        // admin_shutdown, crash_shutdown, database_dropped, idle_session_timeout, connection
        // exceptions, and every other error that ends the session.
        _ if fatal || state.starts_with("57P") || state.starts_with("08") => ErrorClass::Lost,
        // idle_in_transaction_session_timeout, transaction_timeout
        "25P03" | "25P04" => ErrorClass::Lost,
        // serialization_failure, deadlock_detected, lock_not_available, query_canceled (a
        // statement timeout), out_of_memory
        "40001" | "40P01" | "55P03" | "57014" | "53200" => ErrorClass::Busy,
        // disk_full. Not 25006 (read_only_sql_transaction): a write in a read-only transaction is a
        // mistake of the handler.
        "53100" => ErrorClass::NotWritable,
        // in_failed_sql_transaction
        "25P02" => ErrorClass::Aborted,
        // no_active_sql_transaction
        "25P01" => ErrorClass::Ended { undone: false },
        _ if state.starts_with("23") => ErrorClass::Constraint,
        _ => ErrorClass::Other,
    }
}

fn is_certain_sqlstate(state: &str) -> bool {
    match state {
        // query_canceled: a timeout or an operator cancelled the statement before it committed.
        "57014" => true,
        // statement_completion_unknown
        "40003" => false,
        // insufficient_resources, disk_full, out_of_memory, configuration_limit_exceeded. Not 53300
        // (too_many_connections), which a pooler may send.
        "53000" | "53100" | "53200" | "53400" => true,
        _ => SENT_BY_SERVER_ONLY
            .iter()
            .any(|class| state.starts_with(class)),
    }
}

/// SQLSTATE classes that only the server itself sends. They come from deferred constraints and
/// triggers, from the state of the transaction, or from a conflict with another transaction.
///
/// They are the classes of cardinality, data, constraints, transaction state, triggered data
/// change, dependent objects, transaction termination, routines, savepoints, names, rollback,
/// access rules, WITH CHECK OPTION, limits, object state, and PL/pgSQL.
const SENT_BY_SERVER_ONLY: [&str; 24] = [
    "09", "0A", "21", "22", "23", "24", "25", "26", "27", "2B", "2D", "2F", "34", "38", "39", "3B",
    "3D", "3F", "40", "42", "44", "54", "55", "P0",
];

/// SQLITE_CONSTRAINT_COMMITHOOK: our commit hook refused a COMMIT that settlement did not send.
const CONSTRAINT_COMMITHOOK: i32 = 531;

/// SQLite's primary result codes.
mod primary {
    pub(super) const ERROR: i32 = 1;
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const READONLY: i32 = 8;
    pub(super) const FULL: i32 = 13;
    pub(super) const CONSTRAINT: i32 = 19;
}

fn of_sqlite(extended: i32) -> ErrorClass {
    match (extended, extended & 0xff) {
        (CONSTRAINT_COMMITHOOK, _) => ErrorClass::Ended { undone: true },
        (_, primary::BUSY | primary::LOCKED) => ErrorClass::Busy,
        // A write on a read-only connection: a mistake of the handler. If the file itself cannot be
        // written, SQLite returns an extended code of READONLY.
        (primary::READONLY, _) => ErrorClass::Other,
        (_, primary::READONLY | primary::FULL) => ErrorClass::NotWritable,
        (_, primary::CONSTRAINT) => ErrorClass::Constraint,
        _ => ErrorClass::Other,
    }
}

/// Returns `true` if this result code of COMMIT proves that nothing was committed. I/O errors prove
/// nothing: if the sync of a COMMIT failed, the data may still be on the disk.
fn is_certain_sqlite(extended: i32) -> bool {
    matches!(
        extended & 0xff,
        primary::BUSY | primary::LOCKED | primary::READONLY | primary::FULL | primary::CONSTRAINT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlstate_and_its_severity_determine_the_error_class() {
        let meanings = [
            (false, "40001", ErrorClass::Busy),
            (false, "40P01", ErrorClass::Busy),
            (false, "57014", ErrorClass::Busy),
            (true, "53300", ErrorClass::Busy),
            (true, "57P03", ErrorClass::Unreachable),
            (true, "57P01", ErrorClass::Lost),
            (false, "57P01", ErrorClass::Lost),
            (true, "57P02", ErrorClass::Lost),
            (true, "57P05", ErrorClass::Lost),
            (true, "25P03", ErrorClass::Lost),
            (true, "25P04", ErrorClass::Lost),
            (true, "08P01", ErrorClass::Lost),
            (true, "08006", ErrorClass::Lost),
            (true, "XX000", ErrorClass::Lost),
            (false, "25006", ErrorClass::Other),
            (false, "53100", ErrorClass::NotWritable),
            (false, "25P01", ErrorClass::Ended { undone: false }),
            (false, "25P02", ErrorClass::Aborted),
            (false, "23505", ErrorClass::Constraint),
            (false, "42601", ErrorClass::Other),
            (false, "XX000", ErrorClass::Other),
        ];
        for (fatal, state, meaning) in meanings {
            assert_eq!(
                of_sqlstate(fatal, state),
                meaning,
                "{state}, fatal: {fatal}"
            );
        }
    }

    #[test]
    fn a_commit_is_certainly_refused_only_by_codes_that_the_server_alone_sends() {
        for state in [
            "23503", "23505", "40001", "40P01", "25P01", "25P02", "3B001", "57014", "P0001",
            "22012", "42P01", "53100",
        ] {
            assert!(is_certain_sqlstate(state), "{state}");
        }
        for state in [
            "08000", "08006", "08P01", "57P01", "57P03", "40003", "58000", "58030", "XX000",
            "53300", "28000", "", "99999",
        ] {
            assert!(!is_certain_sqlstate(state), "{state}");
        }
    }

    #[test]
    fn a_sqlite_result_code_determines_the_error_class_and_whether_a_refusal_is_certain() {
        for (code, meaning, certain) in [
            (5, ErrorClass::Busy, true),
            (517, ErrorClass::Busy, true), // BUSY_SNAPSHOT
            (13, ErrorClass::NotWritable, true),
            (1032, ErrorClass::NotWritable, true), // READONLY_DBMOVED
            (787, ErrorClass::Constraint, true),   // CONSTRAINT_FOREIGNKEY
            (531, ErrorClass::Ended { undone: true }, true),
            (1034, ErrorClass::Other, false), // IOERR_FSYNC
            (778, ErrorClass::Other, false),  // IOERR_WRITE
        ] {
            assert_eq!(of_sqlite(code), meaning, "{code}");
            assert_eq!(is_certain_sqlite(code), certain, "{code}");
        }
    }

    #[test]
    fn every_error_while_connecting_means_unreachable_unless_the_pool_is_closed() {
        for error in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::Protocol("unexpected response from SSLRequest: 0x00".into()),
            sqlx::Error::Io(io::ErrorKind::ConnectionReset.into()),
            while_connecting(sqlx::Error::PoolTimedOut),
        ] {
            let error = while_connecting(error);
            assert_eq!(ErrorClass::of(&error), ErrorClass::Unreachable, "{error}");
            assert!(!is_certain_refusal(&error), "{error}");
        }
        let closed = while_connecting(sqlx::Error::PoolClosed);
        assert_eq!(ErrorClass::of(&closed), ErrorClass::Lost);
    }
}
