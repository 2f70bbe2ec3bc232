//! A transaction on a session: begun, proved, committed, rolled back.

use std::sync::Arc;

use sqlx::postgres::PgConnection;
use sqlx::{Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use super::fate::{Fate, Outside};
use super::proof::{Answers, nonce, savepoint, seal, unseal};
use super::session::{
    Cleaned, Last, OnReturn, OpenTransaction, PROMPT, PostgresSession, Protection, depth,
};
use super::sessions::no_answer;
use super::settings::{GUARD, literal};
use crate::db::error_class::{
    is_certain_refusal, not_writable, while_beginning_to_write, while_connecting,
};
use crate::db::{
    Access, BeginOptions, CommitError, Durability, Ending, ErrorClass, Isolation, RollbackError,
    Session, TransactionControl, TransactionId,
};

type Manager = <Postgres as sqlx::Database>::TransactionManager;

impl Session for PostgresSession {
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        self
    }

    fn connection_ref(&self) -> &PgConnection {
        self
    }
}

impl TransactionControl for PostgresSession {
    fn owner(&mut self) -> &mut Option<TransactionId> {
        &mut self.owner
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    /// One round trip, in which the transaction is [sealed](seal), and its id comes. Above READ
    /// COMMITTED a mark tells it from others.
    async fn begin(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        self.set_on_return(OnReturn::Check);
        let writes = options.access == Access::ReadWrite;
        self.transaction = OpenTransaction {
            writes,
            ..OpenTransaction::default()
        };
        let level = match options.isolation {
            Isolation::Default => "",
            Isolation::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => " ISOLATION LEVEL SERIALIZABLE",
        };
        // Elsewhere the first query fixes the snapshot, and that must be the handler's.
        let reads_committed = self.live().reads_committed;
        let has_id = writes && options.isolation == Isolation::Default && reads_committed;
        let name = savepoint();
        let nonce = nonce();
        let (sql, statements) = match (writes, has_id) {
            (true, true) => (
                format!(
                    "RESET {GUARD}; BEGIN READ WRITE; {seal}; SAVEPOINT {name}; \
                     SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text, \
                         pg_catalog.current_setting('{GUARD}'), '{nonce}'",
                    seal = seal(name)
                ),
                5,
            ),
            // None of these is a query that fixes the snapshot.
            (true, false) => {
                let mark = self.sessions().settings().marked_name();
                let sql = format!(
                    "RESET {GUARD}; BEGIN{level} READ WRITE; SET LOCAL application_name = {}; \
                     SAVEPOINT {name}; SHOW {GUARD}; SET {GUARD} = on",
                    literal(&mark)
                );
                self.transaction.mark = Some(mark.into());
                (sql, 6)
            }
            (false, _) => (format!("BEGIN{level} READ ONLY; SAVEPOINT {name}"), 2),
        };
        let beginning = async {
            enter(self).await?;
            let answers = Answers::to(self, sql).await;
            let is_answered = answers.error.is_none() && answers.count == statements;
            if !is_answered || has_id && !answers.prove(statements, &nonce) {
                return Err(answers.into_error());
            }
            let read_only = answers.text(usize::from(has_id));
            if writes && read_only != Some("off") {
                let reason = "transactions are read-only by default at the server";
                return Err(not_writable(reason.into()));
            }
            if has_id {
                self.transaction.id = answers.text(0).map(Arc::from);
                self.transaction.protection = Protection::Sealed;
            }
            Ok(())
        };
        // It waits for no lock.
        let begun = timeout(PROMPT, beginning).await;
        let begun = begun.unwrap_or_else(|_| {
            // The network, or the server, is silent: the others will not answer either.
            self.sessions().forget_idle();
            Err(match self.is_new {
                true => while_connecting(no_answer(PROMPT)),
                false => no_answer(PROMPT),
            })
        });
        let begun = begun.map_err(|error| match writes {
            true => while_beginning_to_write(error),
            false => error,
        });
        self.note_health(writes, &begun);
        begun
    }

    /// The savepoint that BEGIN made lives as long as that transaction:
    ///
    /// - an aborted transaction cannot release it (25P02);
    /// - nor can what stands outside one (25P01), or another, which the handler began or chained
    ///   (3B001);
    /// - deferred constraints are checked now, and every later statement at once.
    async fn prepare(&mut self) -> Result<(), CommitError> {
        let savepoint = savepoint();
        let nonce = nonce();
        let sql = format!(
            "RELEASE {savepoint}; SAVEPOINT {savepoint}; SET CONSTRAINTS ALL IMMEDIATE; \
             SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, \
                 pg_catalog.pg_backend_pid()::pg_catalog.text, '{nonce}'"
        );
        let answers = Answers::to(self, sql).await;
        // Safe code can exchange the connections of two sessions: the id must be of ours.
        let is_ours = answers.text(1) == Some(self.backend().pid());
        if !answers.prove(4, &nonce) || !is_ours {
            // Nothing was committed, whatever became of the connection.
            return Err(refusal(answers.into_error()));
        }
        if let Some(id) = answers.text(0) {
            self.transaction.id = Some(id.into());
        }
        if self.transaction.protection == Protection::None {
            self.transaction.protection = Protection::Proved;
        }
        Ok(())
    }

    /// The proof, COMMIT and what cleans up in one simple query: the server stops at the first
    /// statement that fails, so COMMIT, which checks deferred constraints by itself, is reached only
    /// if the proof holds.
    async fn commit(&mut self) -> Result<Durability, CommitError> {
        if self.transaction.is_doubtful() {
            self.prepare().await?;
        }
        // What is left is for asking what became of it.
        let limit = self.sessions().settle_timeout() / 2;
        let proof = match self.transaction.protection {
            Protection::Sealed => unseal(savepoint()),
            Protection::None | Protection::Proved => format!("RELEASE {}", savepoint()),
        };
        let statements = [&*proof, "COMMIT"];
        let committing = self.run_last(&statements);
        let (error, is_alive) = match timeout(limit, committing).await {
            Ok(Last::Proved) => return Ok(Durability::reached()),
            Ok(Last::NotProved(answers)) => {
                let answered = answers.count;
                let error = answers.into_error();
                if answered < 2 && is_certain_refusal(&error) {
                    self.transaction.is_refused = answered == 1;
                    return Err(refusal(error));
                }
                (error, true)
            }
            Ok(Last::Lost(answers)) => (answers.into_error(), false),
            Err(_) => (no_answer(limit), false),
        };
        self.set_on_return(OnReturn::Close);
        match self.fate().await {
            Some(Fate::Committed) => Ok(Durability::reached()),
            // The session was not cut off: somebody else has ended the transaction, and may have
            // done more outside of it.
            Some(Fate::RolledBack) if is_alive => Err(CommitError::Ended { undone: false }),
            Some(Fate::RolledBack) => Err(CommitError::Lost(error)),
            None => Err(CommitError::Unknown(error)),
        }
    }

    /// It too proves that it ended the transaction that BEGIN began, and not what a handler made of
    /// it.
    async fn rollback(&mut self) -> Result<(), RollbackError> {
        if self.transaction.is_refused {
            // Unless it was the refusal of another statement, which was read late.
            if self.live().clean().await == Cleaned::Done {
                self.set_on_return(OnReturn::Reuse);
                return Ok(());
            }
            return self.not_proved(None).await;
        }
        let limit = self.sessions().settle_timeout() / 2;
        let back = format!("ROLLBACK TO {}", savepoint());
        let statements = [&*back, "ROLLBACK"];
        let rolling_back = self.run_last(&statements);
        let lost = match timeout(limit, rolling_back).await {
            Ok(Last::Proved) => return Ok(()),
            Ok(Last::NotProved(_)) => None,
            Ok(Last::Lost(answers)) => Some(answers.into_error()),
            Err(_) => Some(no_answer(limit)),
        };
        self.not_proved(lost).await
    }

    fn ending(&self) -> Ending {
        Ending::by(Outside {
            backend: Arc::clone(self.backend()),
            transaction: self.transaction.clone(),
            sessions: self.sessions().clone(),
        })
    }

    fn start_rollback(&mut self) {
        // Deeper, a handler has forgotten a savepoint, and sqlx would roll back to it alone.
        match depth(self) {
            1 => {
                Manager::start_rollback(self);
                self.set_on_return(OnReturn::Check);
            }
            _ => self.set_on_return(OnReturn::Close),
        }
    }

    fn close_on_drop(&mut self) {
        self.set_on_return(OnReturn::Close);
    }
}

impl PostgresSession {
    fn note_health(&self, writes: bool, begun: &sqlx::Result<()>) {
        let health = self.sessions().health();
        match begun {
            Ok(()) => {
                if let (true, Some(health)) = (writes, health) {
                    health.takes_writes();
                }
            }
            Err(error) => match ErrorClass::of(error) {
                ErrorClass::NotWritable => {
                    // The others lead to the same server.
                    self.sessions().forget_idle();
                    if let (true, Some(health)) = (self.is_new, health) {
                        health.takes_no_writes(error);
                    }
                }
                ErrorClass::Unreachable => {
                    if let Some(health) = health {
                        health.is_unreachable(error);
                    }
                }
                _ => {}
            },
        }
    }

    /// ROLLBACK was not answered as it should be. If the session was `lost`, the server is asked. A
    /// session that lives, and does not prove that it has rolled back what BEGIN began, says enough:
    /// somebody else has ended that, and may have done more outside of it.
    async fn not_proved(&mut self, lost: Option<sqlx::Error>) -> Result<(), RollbackError> {
        self.set_on_return(OnReturn::Close);
        let Some(lost) = lost else {
            return Err(RollbackError::Ended { undone: false });
        };
        match self.fate().await {
            // The handler had sent COMMIT by itself.
            Some(Fate::Committed) => Err(RollbackError::Ended { undone: false }),
            Some(Fate::RolledBack) => Ok(()),
            None if self.transaction.is_doubtful() => Err(RollbackError::Ended { undone: false }),
            None => Err(RollbackError::Lost(lost)),
        }
    }

    /// What became of the transaction, after its end was not answered.
    async fn fate(&self) -> Option<Fate> {
        let id = self.transaction.id.as_deref()?;
        self.backend().fate(id, self.sessions()).await
    }
}

/// Has sqlx count the session as one deep in transactions, so that `begin` on it makes a savepoint
/// within ours.
///
/// Only sqlx's own COMMIT would count back, and that one cannot carry the proof; so a session of
/// ours stays counted as one deep, in a transaction or not.
async fn enter(connection: &mut PgConnection) -> sqlx::Result<()> {
    if depth(connection) == 0 {
        Manager::begin(connection, Some("BEGIN".into_sql_str())).await?;
        let answers = Answers::to(connection, "ROLLBACK".into()).await;
        if answers.error.is_some() || answers.count != 1 {
            return Err(answers.into_error());
        }
    }
    Ok(())
}

/// Lets what no BEGIN of ours precedes write.
pub(super) async fn unguard(connection: &mut PgConnection) -> sqlx::Result<()> {
    let resetting = Answers::to(connection, format!("RESET {GUARD}"));
    let answers = timeout(PROMPT, resetting).await;
    match answers {
        Ok(answers) if answers.error.is_none() && answers.count == 1 => Ok(()),
        Ok(answers) => Err(answers.into_error()),
        Err(_) => Err(no_answer(PROMPT)),
    }
}

/// The opposite of [`enter`], for statements that no BEGIN of ours precedes.
pub(super) async fn leave(connection: &mut PgConnection) -> sqlx::Result<()> {
    if depth(connection) == 0 {
        return Ok(());
    }
    let leaving = async {
        let answers = Answers::to(connection, "BEGIN".into()).await;
        if answers.error.is_some() || answers.count != 1 {
            return Err(answers.into_error());
        }
        Manager::rollback(connection).await
    };
    let left = timeout(PROMPT, leaving).await;
    left.unwrap_or_else(|_| Err(no_answer(PROMPT)))
}

fn refusal(error: sqlx::Error) -> CommitError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("25P02") => CommitError::Aborted,
        Some("25P01" | "3B001") => CommitError::Ended { undone: false },
        // Also 34000: the seal is gone, because the transaction is over, or because its handler closed
        // all cursors. ROLLBACK finds out which.
        _ => CommitError::Refused(error),
    }
}
