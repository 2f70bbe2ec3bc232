//! Asking a session so that only the right answer can be taken for one.
//!
//! sqlx counts the answers that are still to come, and can count wrong: it does not count the one
//! that ends `COPY … TO STDOUT`, so that a stream which is dropped half-way leaves the session one
//! answer behind. Every statement is then answered with what the one before it had asked. Whatever
//! is decided by an answer is therefore asked together with a number that nobody has seen before,
//! and is believed only if the number comes back, after exactly as many answers as there were
//! statements.

use rocket::futures::StreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};

/// A number that no answer can hold by chance.
pub(super) fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// The savepoint at the beginning of every transaction of this process. A handler that ended its
/// transaction cannot make another one by this name: it is drawn at random.
///
/// One for the process and not for each transaction: `pg_stat_statements` keeps an entry for every
/// name.
pub(super) fn savepoint() -> &'static str {
    static NAME: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| format!("rocket_tx_{:016x}", fastrand::u64(..)));
    &NAME
}

/// Has the server refuse COMMIT and PREPARE TRANSACTION, until [`unseal`] has taken the seal away. A
/// cursor that outlives its transaction is computed by COMMIT, and this one cannot be.
/// <https://www.postgresql.org/docs/current/sql-declare.html>
///
/// Without it nobody could tell, once a session is lost, whose COMMIT the server had obeyed.
pub(super) fn seal(name: &str) -> String {
    format!(
        "DECLARE {name} NO SCROLL CURSOR WITH HOLD FOR \
         SELECT pg_catalog.current_setting('{SEALED}')"
    )
}

/// Fails outside of the transaction that was sealed.
pub(super) fn unseal(name: &str) -> String {
    format!("CLOSE {name}")
}

/// A setting that nobody has: the server's error quotes it.
const SEALED: &str = "rocket_tx: a handler does not commit by itself, its answer does";

/// What a session has answered to several statements.
pub(super) struct Answers {
    /// How many of the statements were answered.
    pub(super) count: usize,
    /// The last row.
    row: Option<PgRow>,
    /// What ended it early.
    pub(super) error: Option<sqlx::Error>,
}

impl Answers {
    /// Sends statements as one simple query, and reads all that comes.
    ///
    /// Dropped half-way, the session has answers to come that nobody waits for.
    pub(super) async fn to(connection: &mut PgConnection, sql: String) -> Self {
        let mut answers = Self {
            count: 0,
            row: None,
            error: None,
        };
        let mut stream = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(connection);
        while let Some(answer) = stream.next().await {
            match answer {
                Ok(sqlx::Either::Left(_)) => answers.count += 1,
                Ok(sqlx::Either::Right(row)) => answers.row = Some(row),
                Err(error) => {
                    answers.error = Some(error);
                    break;
                }
            }
        }
        answers
    }

    /// Whether all `statements` were answered, and the last row ends in `nonce`.
    pub(super) fn prove(&self, statements: usize, nonce: &str) -> bool {
        self.error.is_none()
            && self.count == statements
            && (self.row.as_ref()).is_some_and(|row| {
                let last = row.len().checked_sub(1);
                last.and_then(|last| text(row, last)) == Some(nonce)
            })
    }

    /// A column of the last row.
    pub(super) fn text(&self, column: usize) -> Option<&str> {
        text(self.row.as_ref()?, column)
    }

    /// The error that ended it, or that the answers are not those of the statements.
    pub(super) fn into_error(self) -> sqlx::Error {
        self.error.unwrap_or_else(|| {
            sqlx::Error::Protocol("the session answered something else than it was asked".into())
        })
    }
}

fn text(row: &PgRow, column: usize) -> Option<&str> {
    row.try_get(column).ok().flatten()
}
