//! What an error of a database means: one table for guards, sessions and settlement.
//!
//! Errors are told apart by SQLSTATE, severity and SQLite result code, never by the text of a
//! message. <https://www.postgresql.org/docs/current/errcodes-appendix.html>,
//! <https://www.sqlite.org/rescode.html>

use std::io;

/// What an error means for the request that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Contention: BUSY, a deadlock, a serialization failure, a wait over its limit, no free
    /// connection.
    Busy,
    /// No connection could be opened: the server is down, starting, or behind a dead network.
    Unreachable,
    /// The session ended in the middle.
    Lost,
    /// The database takes no writes now: a standby, a read-only server, a full disk.
    NotWritable,
    /// Postgres has aborted the transaction because of an earlier error.
    Aborted,
    /// The transaction is over, and settlement did not end it.
    Ended {
        /// Nothing of it stays.
        undone: bool,
    },
    /// A constraint refused.
    Constraint,
    /// `fetch_one` found nothing.
    NotFound,
    /// Everything else: a mistake in the SQL, in the code, in the driver.
    Other,
}

impl ErrorClass {
    /// What an error of a statement means.
    pub fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::PoolTimedOut => Self::Busy,
            sqlx::Error::Io(error) if mark(error).is_some() => match mark(error) {
                Some(Mark::NotWritable(_)) => Self::NotWritable,
                _ => Self::Unreachable,
            },
            // Only the first bytes of a connection go through a TLS handshake.
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

/// Whether the session that met this error can be used no more: it has ended, or the driver no
/// longer understands what comes.
pub(crate) fn ends_session(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Protocol(_)) || is_lost(error)
}

/// Whether the session that met this error has ended.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(
        ErrorClass::of(error),
        ErrorClass::Lost | ErrorClass::Unreachable
    )
}

/// Whether another session may do better than the one that met this error at its first statement: it
/// had died while it was idle, or leads to a server that was the primary once.
pub(crate) fn may_be_stale(error: &sqlx::Error) -> bool {
    ends_session(error) || ErrorClass::of(error) == ErrorClass::NotWritable
}

/// Whether COMMIT, answered with this error, has certainly committed nothing.
///
/// Postgres means it when it answers with severity ERROR: past its commit record an error is a
/// PANIC. But a connection pooler, or a proxy, answers with errors too when it has lost the server
/// on the way, and knows no better than anybody. So only codes count that a server gives for its
/// own reasons; what is in no class here is doubtful.
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

/// Marks an error as one of opening a connection, whatever it says: a server that starts, stops, or
/// is not there answers with many.
///
/// `PoolTimedOut` is marked too: only who knows that nobody else had the connection may give it.
pub(crate) fn while_connecting(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::PoolClosed => error,
        // The server is there, and has no room: others must end first.
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

/// Marks an error that the beginning of a transaction met which may write, if it says that nothing
/// can be written there: a standby has no transaction ids to give, and refuses modes that write.
#[cfg(feature = "postgres")]
pub(crate) fn while_beginning_to_write(error: sqlx::Error) -> sqlx::Error {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        // object_not_in_prerequisite_state, feature_not_supported, read_only_sql_transaction
        Some("55000" | "0A000" | "25006") => not_writable(error.to_string()),
        _ => error,
    }
}

/// That a database takes no writes.
#[cfg(feature = "postgres")]
pub(crate) fn not_writable(reason: String) -> sqlx::Error {
    let kind = io::ErrorKind::ReadOnlyFilesystem;
    sqlx::Error::Io(io::Error::new(kind, Mark::NotWritable(reason)))
}

/// What is known of an error beyond what it says, inside one that sqlx has a place for.
#[derive(Debug, thiserror::Error)]
enum Mark {
    #[error("cannot connect: {}", describe(.0))]
    Connecting(#[source] sqlx::Error),
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    #[error("{0}")]
    NotWritable(String),
}

/// The pool tries until it is out of time, and then says that it waited for others. What sqlx says
/// before an error of the system, it says before the mark too.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => "no answer in time".into(),
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
        /// Severity FATAL or PANIC: the server, or a pooler, ends the session with it.
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
        // too_many_connections; also FATAL, but others will end.
        "53300" => ErrorClass::Busy,
        // cannot_connect_now; a client that may not, or cannot, connect.
        "57P03" | "08001" | "08004" => ErrorClass::Unreachable,
        // admin_shutdown, crash_shutdown, database_dropped, idle_session_timeout, both timeouts of
        // a transaction, and whatever else comes with the end of the session.
        _ if fatal || state.starts_with("57P") || state.starts_with("08") => ErrorClass::Lost,
        "25P03" | "25P04" => ErrorClass::Lost,
        // serialization_failure, deadlock_detected, lock_not_available, query_canceled (a
        // statement timeout), out_of_memory
        "40001" | "40P01" | "55P03" | "57014" | "53200" => ErrorClass::Busy,
        // disk_full. A write in a transaction that was begun to read is the handler's mistake.
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
        // query_canceled: by a timeout, or an operator, before the commit.
        "57014" => true,
        // statement_completion_unknown
        "40003" => false,
        // No room on the server, or a limit of its own; too_many_connections is a pooler's.
        "53000" | "53100" | "53200" | "53400" => true,
        _ => CERTAIN.iter().any(|class| state.starts_with(class)),
    }
}

/// Classes of errors that only the server itself finds, in deferred constraints and triggers, in
/// the state of the transaction, or in a conflict with another: cardinality, data, constraints,
/// transaction state, triggered data change, dependent objects, transaction termination, routines,
/// savepoints, names, rollback, access rules, WITH CHECK OPTION, limits, object state, PL/pgSQL.
const CERTAIN: [&str; 24] = [
    "09", "0A", "21", "22", "23", "24", "25", "26", "27", "2B", "2D", "2F", "34", "38", "39", "3B",
    "3D", "3F", "40", "42", "44", "54", "55", "P0",
];

/// A commit hook refused: a COMMIT that settlement did not send.
const CONSTRAINT_COMMITHOOK: i32 = 531;

/// SQLite's primary result codes.
mod primary {
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
        // Through a connection that only reads: the handler's mistake, not the file's.
        (primary::READONLY, _) => ErrorClass::Other,
        (_, primary::READONLY | primary::FULL) => ErrorClass::NotWritable,
        (_, primary::CONSTRAINT) => ErrorClass::Constraint,
        _ => ErrorClass::Other,
    }
}

/// Not an I/O error: a sync that failed at COMMIT may have reached the disk.
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
    fn a_sqlstate_says_what_happened_to_the_session() {
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
    fn only_the_server_s_own_reasons_are_a_certain_refusal_of_commit() {
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
    fn a_result_code_of_sqlite_says_what_happened() {
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
    fn whatever_fails_while_connecting_means_unreachable() {
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
