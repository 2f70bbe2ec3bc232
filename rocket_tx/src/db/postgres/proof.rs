//! Matches replies with statements, and makes the seal and the proof of a transaction.
//!
//! sqlx counts the replies that are still to come, and its count can be wrong: it does not count
//! the reply that ends `COPY … TO STDOUT`. If such a stream is dropped half-way, the session stays
//! one reply behind, and every statement receives the reply to the statement before it.
//!
//! Statements whose replies decide something are therefore sent together with a nonce, a random
//! number that is used once. Their replies are trusted only if the nonce comes back, after exactly
//! as many replies as there were statements.

use rocket::futures::StreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};

/// Returns a random number that no reply can contain by chance.
pub(super) fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// Returns the name of the proof: the savepoint that `begin` creates in every transaction. It shows
/// that the open transaction is still the one that `begin` began. The name is random, so a handler
/// cannot create a savepoint with this name in a transaction of its own.
///
/// All transactions of the process share the name, because `pg_stat_statements` keeps an entry for
/// every name.
pub(super) fn savepoint() -> &'static str {
    static NAME: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| format!("rocket_tx_{:016x}", fastrand::u64(..)));
    &NAME
}

/// Returns the statement that seals a transaction. The server then refuses COMMIT and PREPARE
/// TRANSACTION until the statement of [`unseal`] has removed the seal. So a handler cannot commit.
///
/// The seal is a cursor that outlives its transaction (`WITH HOLD`). COMMIT must compute the rows
/// of such a cursor, and the query of this one always fails.
/// <https://www.postgresql.org/docs/current/sql-declare.html>
///
/// The seal also matters after a session is lost. If the server then reports the transaction as
/// committed, our COMMIT has committed it, and not a COMMIT of the handler.
pub(super) fn seal(name: &str) -> String {
    format!(
        "DECLARE {name} NO SCROLL CURSOR WITH HOLD FOR \
         SELECT pg_catalog.current_setting('{SEALED}')"
    )
}

/// Returns the statement that removes the seal. It fails outside the sealed transaction.
pub(super) fn unseal(name: &str) -> String {
    format!("CLOSE {name}")
}

/// The name of a setting that does not exist. The server quotes it in the error of the refused
/// COMMIT, so the name is the message to the handler's author.
const SEALED: &str = "rocket_tx: a handler must not commit, settlement does";

/// The replies of a session to several statements.
pub(super) struct Replies {
    /// The number of statements that got a reply.
    pub(super) count: usize,
    /// The last row.
    row: Option<PgRow>,
    /// The error that ended the replies early.
    pub(super) error: Option<sqlx::Error>,
}

impl Replies {
    /// Sends statements as one simple query, and reads all replies.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped half-way, the session has unread replies.
    pub(super) async fn to(connection: &mut PgConnection, sql: String) -> Self {
        let mut replies = Self {
            count: 0,
            row: None,
            error: None,
        };
        let mut stream = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(connection);
        while let Some(reply) = stream.next().await {
            match reply {
                Ok(sqlx::Either::Left(_)) => replies.count += 1,
                Ok(sqlx::Either::Right(row)) => replies.row = Some(row),
                Err(error) => {
                    replies.error = Some(error);
                    break;
                }
            }
        }
        replies
    }

    /// Returns whether exactly `statements` statements got a reply, none of them failed, and the
    /// last column of the last row is `nonce`.
    pub(super) fn prove(&self, statements: usize, nonce: &str) -> bool {
        self.error.is_none()
            && self.count == statements
            && (self.row.as_ref()).is_some_and(|row| {
                let last = row.len().checked_sub(1);
                last.and_then(|last| text(row, last)) == Some(nonce)
            })
    }

    /// Returns a column of the last row.
    pub(super) fn text(&self, column: usize) -> Option<&str> {
        text(self.row.as_ref()?, column)
    }

    /// Returns the error that ended the replies. If there is none, returns an error which says that
    /// the replies do not match the statements.
    pub(super) fn into_error(self) -> sqlx::Error {
        self.error.unwrap_or_else(|| {
            sqlx::Error::Protocol("the replies of the session do not match its statements".into())
        })
    }
}

fn text(row: &PgRow, column: usize) -> Option<&str> {
    row.try_get(column).ok().flatten()
}
