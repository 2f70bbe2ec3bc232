//! A transaction on a session: BEGIN, the proof, COMMIT and ROLLBACK.
//!
//! A handler may send COMMIT or ROLLBACK itself. Two things guard against that:
//!
//! - The seal ([`seal`]) makes the server refuse every COMMIT except ours. Only READ COMMITTED
//!   transactions that may write have a seal.
//! - The proof ([`savepoint`]) is a savepoint that [`begin`](TransactionControl::begin) creates.
//!   Only the transaction that `begin` began has this savepoint. If it can be released or rolled
//!   back to, this transaction is still open.

use std::sync::Arc;

use sqlx::postgres::PgConnection;
use sqlx::{Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use super::atomic::{self, FLUSHED};
use super::fate::{Fate, Outside};
use super::proof::{Replies, nonce, savepoint, seal, unseal};
use super::session::{
    Cleaned, EndResult, OnReturn, OpenTransaction, PROMPT, PostgresSession, Protection, depth,
};
use super::sessions::no_reply;
use super::settings::{GUARD, literal};
use crate::db::error_class::{
    is_certain_refusal, is_conflict, not_writable, while_beginning_to_write, while_connecting,
};
use crate::db::{
    Access, BeginOptions, CommitError, Decided, Decision, Durability, Ending, ErrorClass,
    ExecutorSession, GlobalId, Isolation, RollbackError, Session, TransactionControl,
    TransactionId,
};

type Manager = <Postgres as sqlx::Database>::TransactionManager;

impl Session for PostgresSession {
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        // The user of the connection may write, and may wait for locks of others.
        self.transaction.has_written_nothing = false;
        self.commit_turn = None;
        self
    }

    fn connection_ref(&self) -> &PgConnection {
        self
    }

    fn mark_unchanged(&mut self) {
        self.set_on_return(OnReturn::Reuse);
    }
}

impl ExecutorSession for PostgresSession {
    type Database = Postgres;
    type Executor<'c> = &'c mut PgConnection;

    fn executor(connection: &mut PgConnection) -> &mut PgConnection {
        connection
    }
}

impl TransactionControl for PostgresSession {
    fn owner(&mut self) -> &mut Option<TransactionId> {
        &mut self.owner
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    /// Begins a transaction in one round trip; the first one on a session takes two more, see
    /// [`enter`].
    ///
    /// A READ COMMITTED transaction that may write is [sealed](seal) in the same round trip, which
    /// also returns its id. Above READ COMMITTED, a transaction that may write gets a mark instead:
    /// an `application_name` that the session has only while the transaction is open.
    async fn begin(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        self.set_on_return(OnReturn::Check);
        let writes = options.access == Access::ReadWrite;
        self.transaction = OpenTransaction {
            writes,
            may_be_serializable: match options.isolation {
                Isolation::Configured => !self.live().reads_committed,
                Isolation::RepeatableRead => false,
                Isolation::Serializable => true,
            },
            ..OpenTransaction::default()
        };
        let level = match options.isolation {
            Isolation::Configured => "",
            Isolation::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => " ISOLATION LEVEL SERIALIZABLE",
        };
        // Above READ COMMITTED the first query fixes the snapshot, so the first query must be the
        // handler's. Reading the id is a query.
        let reads_committed = self.live().reads_committed;
        let has_id = writes && options.isolation == Isolation::Configured && reads_committed;
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
            // None of these statements fixes the snapshot.
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
            let replies = Replies::to(self, sql).await;
            let is_complete = replies.error.is_none() && replies.count == statements;
            if !is_complete || has_id && !replies.prove(statements, &nonce) {
                return Err(replies.into_error());
            }
            let read_only = replies.text(usize::from(has_id));
            if writes && read_only != Some("off") {
                let reason = "the server has `default_transaction_read_only = on`; set it to \
                              off to allow writes";
                return Err(not_writable(reason.into()));
            }
            if has_id {
                self.transaction.id = replies.text(0).map(Arc::from);
                self.transaction.protection = Protection::Sealed;
            }
            Ok(())
        };
        // BEGIN waits for no lock, so the limit can be short.
        let begun = timeout(PROMPT, beginning).await;
        let begun = begun.unwrap_or_else(|_| {
            // The network or the server is silent, so the idle sessions would get no reply either.
            self.sessions().forget_idle();
            Err(match self.is_new {
                true => while_connecting(no_reply(PROMPT)),
                false => no_reply(PROMPT),
            })
        });
        let begun = begun.map_err(|error| match writes {
            true => while_beginning_to_write(error),
            false => error,
        });
        self.note_health(writes, &begun);
        begun
    }

    /// Releases the proof and creates it again. This savepoint exists only in the transaction that
    /// [`begin`](Self::begin) began, so the release fails
    ///
    /// - with 25P02 in an aborted transaction;
    /// - with 25P01 outside a transaction;
    /// - with 3B001 in another transaction, which the handler began or chained.
    ///
    /// Also checks all deferred constraints now. Later statements of this transaction check their
    /// constraints at once.
    async fn prepare(&mut self) -> Result<(), CommitError> {
        self.prove(None).await.map(drop)
    }

    async fn prepare_among_several(&mut self) -> Result<(), CommitError> {
        let ids = self.prove(Some(ASSIGNED_IDS)).await?;
        // BEGIN has an id assigned to a sealed transaction. The savepoint of the proof has an id of
        // its own once something is written after it.
        let without_writes = match self.transaction.protection {
            Protection::Sealed => "1",
            Protection::None | Protection::Proved => "0",
        };
        self.transaction.has_written_nothing = ids.as_deref() == Some(without_writes);
        Ok(())
    }

    fn may_have_written(&self) -> bool {
        self.transaction.writes && !self.transaction.has_written_nothing
    }

    /// Everything in one message, so that no statement of the handler comes between the proof and
    /// PREPARE TRANSACTION. PREPARE of an aborted transaction is no error for the server, so the
    /// proof must come first.
    async fn prepare_transaction(&mut self, id: &GlobalId) -> Result<(), CommitError> {
        let limit = self.sessions().settle_timeout() / 2;
        let prepare = format!("PREPARE TRANSACTION '{id}'");
        // Only the role that prepares can finish, so it is the role of the pool's sessions.
        let statements = ["RESET ROLE", &self.last_proof(), &prepare];
        let preparing = self.run_final(&statements);
        let error = match timeout(limit, preparing).await {
            Ok(EndResult::Proved) => return Ok(()),
            Ok(EndResult::NotProved(replies)) => {
                let last = statements.len() - 1;
                let replied = replies.count;
                let error = replies.into_error();
                if replied <= last && is_certain_refusal(&error) {
                    self.transaction.is_refused = replied == last;
                    let code = error.as_database_error().and_then(|error| error.code());
                    return Err(match code.as_deref() {
                        // feature_not_supported, object_not_in_prerequisite_state
                        Some("0A000" | "55000") if replied == last => {
                            CommitError::CannotPrepare(error)
                        }
                        _ => refusal(error),
                    });
                }
                error
            }
            Ok(EndResult::Lost(replies)) => replies.into_error(),
            Err(_) => no_reply(limit),
        };
        self.set_on_return(OnReturn::Close);
        Err(CommitError::Lost(error))
    }

    async fn decide(&mut self, decision: &Decision) -> Result<Durability, CommitError> {
        // The division fails if a rule or a trigger has prevented the INSERT.
        let insert = format!(
            "WITH decided AS (INSERT INTO {} (id, decision, participants) \
                 VALUES ('{}', 'commit', '{}') RETURNING id) \
             SELECT 1 OPERATOR(pg_catalog./) pg_catalog.count(*) FROM decided",
            decision.table,
            decision.id,
            decision.participants()
        );
        // The handler may have taken a role that cannot write the table.
        self.commit_after(&["RESET ROLE", FLUSHED, &insert]).await
    }

    /// Reads a row of a table, because the server reports a conflict to the next statement that
    /// reads or writes a table. It ignores tables of `pg_catalog` here. Nobody writes to this one.
    async fn detect_conflict(&mut self) -> sqlx::Result<()> {
        if !self.transaction.may_be_serializable {
            return Ok(());
        }
        self.commit_turn = self.sessions().commit_turns().take().await;
        let nonce = nonce();
        let sql = format!("SELECT '{nonce}' FROM information_schema.sql_sizing LIMIT 1");
        let replies = Replies::to(self, sql).await;
        if replies.prove(1, &nonce) {
            return Ok(());
        }
        self.commit_turn = None;
        let error = replies.into_error();
        self.note_conflict(&error);
        Err(error)
    }

    async fn finish_prepared(&mut self, id: &GlobalId, decided: Decided) -> sqlx::Result<()> {
        let limit = self.sessions().settle_timeout() / 2;
        let finishing = atomic::finish(self, id, decided);
        timeout(limit, finishing)
            .await
            .unwrap_or_else(|_| Err(no_reply(limit)))
    }

    async fn commit(&mut self) -> Result<Durability, CommitError> {
        let committed = self.commit_after(&[]).await;
        self.commit_turn = None;
        if let Err(CommitError::Refused(error)) = &committed {
            self.note_conflict(error);
        }
        committed
    }

    /// Rolls back. Also proves that this ended the transaction that [`begin`](Self::begin) began,
    /// and not another one that the handler began.
    async fn rollback(&mut self) -> Result<(), RollbackError> {
        self.commit_turn = None;
        if self.transaction.is_refused {
            // If the refusal was the reply to our COMMIT, the server has already rolled back. But
            // the refusal may have been a late reply to another statement. Then the replies do not
            // match the statements, and the clean-up fails.
            if self.live().clean().await == Cleaned::Done {
                self.set_on_return(OnReturn::Reuse);
                return Ok(());
            }
            return self.not_proved(None).await;
        }
        let limit = self.sessions().settle_timeout() / 2;
        let back = format!("ROLLBACK TO {}", savepoint());
        let statements = [&*back, "ROLLBACK"];
        let rolling_back = self.run_final(&statements);
        let lost = match timeout(limit, rolling_back).await {
            Ok(EndResult::Proved) => return Ok(()),
            Ok(EndResult::NotProved(_)) => None,
            Ok(EndResult::Lost(replies)) => Some(replies.into_error()),
            Err(_) => Some(no_reply(limit)),
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
        // At a greater depth the handler left a savepoint open, and sqlx would roll back only to
        // that savepoint.
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
    /// Releases the proof and makes it again. Returns the value of `before`, an expression that is
    /// evaluated first.
    async fn prove(&mut self, before: Option<&str>) -> Result<Option<String>, CommitError> {
        let savepoint = savepoint();
        let nonce = nonce();
        let before = before.map(|expression| format!("SELECT {expression}; "));
        let statements = 4 + usize::from(before.is_some());
        let before = before.unwrap_or_default();
        let sql = format!(
            "{before}RELEASE {savepoint}; SAVEPOINT {savepoint}; SET CONSTRAINTS ALL IMMEDIATE; \
             SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, \
                 pg_catalog.pg_backend_pid()::pg_catalog.text, '{nonce}'"
        );
        let replies = Replies::to(self, sql).await;
        // Safe code can exchange the connections of two sessions. So check that the reply comes
        // from the server process of this session.
        let is_ours = replies.text(1) == Some(self.backend().pid());
        if !replies.prove(statements, &nonce) || !is_ours {
            // Nothing was committed, even if the connection is lost.
            return Err(refusal(replies.into_error()));
        }
        if let Some(id) = replies.text(0) {
            self.transaction.id = Some(id.into());
        }
        if self.transaction.protection == Protection::None {
            self.transaction.protection = Protection::Proved;
        }
        Ok(replies.first_text().map(str::to_owned))
    }

    /// Returns the statement that proves a transaction for the last time.
    fn last_proof(&self) -> String {
        match self.transaction.protection {
            Protection::Sealed => unseal(savepoint()),
            Protection::None | Protection::Proved => format!("RELEASE {}", savepoint()),
        }
    }

    /// Sends `before`, the release of the proof (or the removal of the seal), COMMIT and the
    /// clean-up as one simple query. The server stops at the first statement that fails, so it
    /// reaches COMMIT only if the transaction is still ours. COMMIT itself checks deferred
    /// constraints.
    ///
    /// If the handler may have committed the transaction, [`prove`](Self::prove) comes first. That
    /// takes another round trip.
    async fn commit_after(&mut self, before: &[&str]) -> Result<Durability, CommitError> {
        if self.transaction.may_be_committed() {
            self.prove(None).await?;
        }
        // The other half of the time is for queries to the server, in case COMMIT gets no reply.
        let limit = self.sessions().settle_timeout() / 2;
        let proof = self.last_proof();
        let statements = [before, &[&*proof, "COMMIT"]].concat();
        let committing = self.run_final(&statements);
        let (error, is_alive) = match timeout(limit, committing).await {
            Ok(EndResult::Proved) => return Ok(Durability::reached()),
            Ok(EndResult::NotProved(replies)) => {
                let (replied, commit) = (replies.count, statements.len() - 1);
                let error = replies.into_error();
                if replied <= commit && is_certain_refusal(&error) {
                    self.transaction.is_refused = replied == commit;
                    return Err(match replied < before.len() {
                        true => not_decided(error),
                        false => refusal(error),
                    });
                }
                (error, true)
            }
            Ok(EndResult::Lost(replies)) => (replies.into_error(), false),
            Err(_) => (no_reply(limit), false),
        };
        self.set_on_return(OnReturn::Close);
        match self.fate().await {
            Some(Fate::Committed) => Ok(Durability::reached()),
            // The session is alive, so the loss of the session did not end the transaction. Usually
            // the handler ended it, and may have written more outside the transaction.
            Some(Fate::RolledBack) if is_alive => Err(CommitError::Ended { undone: false }),
            Some(Fate::RolledBack) => Err(CommitError::Lost(error)),
            None => Err(CommitError::Unknown(error)),
        }
    }

    /// Records a conflict that the server has reported at the end of a transaction.
    fn note_conflict(&self, error: &sqlx::Error) {
        if self.transaction.may_be_serializable && is_conflict(error) {
            self.sessions().commit_turns().note_conflict();
        }
    }

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
                    // Idle sessions lead to the same server.
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

    /// Returns the result of a rollback whose replies do not prove it. `lost` is the error that
    /// ended the session; then the server is queried how the transaction ended. `None` means that
    /// the session is alive: usually the handler ended the transaction, and may have written more
    /// outside it.
    async fn not_proved(&mut self, lost: Option<sqlx::Error>) -> Result<(), RollbackError> {
        self.set_on_return(OnReturn::Close);
        let Some(lost) = lost else {
            return Err(RollbackError::Ended { undone: false });
        };
        match self.fate().await {
            // The handler itself had sent COMMIT.
            Some(Fate::Committed) => Err(RollbackError::Ended { undone: false }),
            Some(Fate::RolledBack) => Ok(()),
            None if self.transaction.may_be_committed() => {
                Err(RollbackError::Ended { undone: false })
            }
            None => Err(RollbackError::Lost(lost)),
        }
    }

    /// Queries the server how the transaction ended, after its COMMIT or ROLLBACK got no reply.
    async fn fate(&self) -> Option<Fate> {
        let id = self.transaction.id.as_deref()?;
        self.backend().fate(id, self.sessions()).await
    }
}

/// Makes sqlx count one open transaction on the session. A handler that calls sqlx's `begin` on it
/// then gets a savepoint within our transaction.
///
/// Only sqlx's own COMMIT or ROLLBACK would lower the count, and neither can carry the proof.
/// Therefore the count stays at one, whether a transaction is open or not.
async fn enter(connection: &mut PgConnection) -> sqlx::Result<()> {
    if depth(connection) == 0 {
        Manager::begin(connection, Some("BEGIN".into_sql_str())).await?;
        let replies = Replies::to(connection, "ROLLBACK".into()).await;
        if replies.error.is_some() || replies.count != 1 {
            return Err(replies.into_error());
        }
    }
    Ok(())
}

/// Lets statements without a BEGIN of this library write.
pub(super) async fn unguard(connection: &mut PgConnection) -> sqlx::Result<()> {
    let resetting = Replies::to(connection, format!("RESET {GUARD}"));
    let replies = timeout(PROMPT, resetting).await;
    match replies {
        Ok(replies) if replies.error.is_none() && replies.count == 1 => Ok(()),
        Ok(replies) => Err(replies.into_error()),
        Err(_) => Err(no_reply(PROMPT)),
    }
}

/// Undoes [`enter`], for statements without a BEGIN of this library.
pub(super) async fn leave(connection: &mut PgConnection) -> sqlx::Result<()> {
    if depth(connection) == 0 {
        return Ok(());
    }
    let leaving = async {
        let replies = Replies::to(connection, "BEGIN".into()).await;
        if replies.error.is_some() || replies.count != 1 {
            return Err(replies.into_error());
        }
        Manager::rollback(connection).await
    };
    let left = timeout(PROMPT, leaving).await;
    left.unwrap_or_else(|_| Err(no_reply(PROMPT)))
}

/// The number of transaction ids that the session's transaction and its savepoints have. The server
/// assigns an id at the first write, and every id is a lock.
/// <https://www.postgresql.org/docs/current/view-pg-locks.html>
const ASSIGNED_IDS: &str = "(SELECT pg_catalog.count(*)::pg_catalog.text \
     FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() \
         AND locktype = 'transactionid' AND mode = 'ExclusiveLock')";

/// Returns the error of a decision that could not be inserted.
fn not_decided(error: sqlx::Error) -> CommitError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        // unique_violation: another process has inserted the decision to abort.
        Some("23505") => CommitError::DecidedToAbort,
        _ => refusal(error),
    }
}

fn refusal(error: sqlx::Error) -> CommitError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("25P02") => CommitError::Aborted,
        Some("25P01" | "3B001") => CommitError::Ended { undone: false },
        // Also 34000: the seal does not exist. Either the transaction has ended, or the handler has
        // closed all cursors. The ROLLBACK that follows shows which.
        _ => CommitError::Refused(error),
    }
}
