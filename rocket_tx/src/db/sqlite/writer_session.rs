//! The writer while one transaction has it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Execute, Sqlite};
use sqlx_core::transaction::TransactionManager;

use super::watch::{End, Found, Question};
use super::writer::{Open, Turn, unreachable};
use crate::db::error_class::is_certain_refusal;
use crate::db::{CommitError, Durability, Ending, RollbackError};

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// The writer, borrowed. Dropping it lets the next request have it.
pub(super) struct WriterSession {
    /// Never empty but in `Drop`, and when a connection could not be replaced.
    turn: Turn,
    give_up: bool,
}

const CHECKED_OUT: &str = "the writer is open for as long as it is lent";

impl WriterSession {
    pub(super) fn new(turn: Turn) -> Self {
        Self {
            turn,
            give_up: false,
        }
    }

    fn open(&self) -> &Open {
        self.turn.as_ref().expect(CHECKED_OUT)
    }

    fn open_mut(&mut self) -> &mut Open {
        self.turn.as_mut().expect(CHECKED_OUT)
    }

    /// Sends BEGIN IMMEDIATE, which waits `busy_timeout` at most for another process. One hop.
    ///
    /// A connection on which an earlier request has left something is found out, and replaced.
    pub(super) async fn begin(&mut self, busy_timeout: Duration) -> sqlx::Result<()> {
        if self.try_begin(busy_timeout).await? {
            return Ok(());
        }
        tracing::debug!("a request had changed the writer's connection; opening another one");
        self.replace().await?;
        match self.try_begin(busy_timeout).await? {
            true => Ok(()),
            // A new one is as it was made.
            false => Err(sqlx::Error::BeginFailed),
        }
    }

    /// Says whether the connection is as it was made.
    async fn try_begin(&mut self, busy_timeout: Duration) -> sqlx::Result<bool> {
        let open = self.open_mut();
        // As a rule it was asked behind the last COMMIT, and has answered by now.
        open.ask_for_state();
        open.wait_for_others(busy_timeout);
        let begun = open.begin().await;
        open.wait_as_usual(busy_timeout);
        let watch = &open.watch;
        if !watch.is_as_made() {
            // Then it may be the reason of the failure too.
            return Ok(false);
        }
        watch.begun();
        begun.map(|()| true)
    }

    async fn replace(&mut self) -> sqlx::Result<()> {
        // Boxed: the future of a handler that needs none of this stays small.
        let replaced = Box::pin(self.open_mut().replace()).await;
        self.give_up |= replaced.is_err();
        replaced
    }

    /// Proves that COMMIT would mean COMMIT, and have room. One hop.
    pub(super) async fn prepare(&mut self) -> Result<(), CommitError> {
        let open = self.open_mut();
        if open.watch.is_blind() {
            return Err(self.is_blind());
        }
        let (connection, watch) = open.parts();
        let broken = watch.is_constraint_broken(connection).await;
        // Read now: what was still in the queue is done.
        if watch.has_ended() {
            return Err(CommitError::Ended { undone: true });
        }
        match broken {
            Ok(false) => {}
            Ok(true) => return Err(CommitError::ConstraintBroken),
            Err(error) => return Err(CommitError::Refused(error)),
        }
        let open = self.open();
        let there = open.file.place.check();
        there.map_err(|error| CommitError::Refused(unreachable(error)))?;
        let room = open.wal.reserve();
        room.map_err(|error| CommitError::Refused(error.into()))
    }

    /// Commits, or says why not. One hop.
    pub(super) async fn commit(&mut self) -> Result<Durability, CommitError> {
        let open = self.open_mut();
        if open.watch.is_blind() {
            return Err(self.is_blind());
        }
        if let Err(error) = open.file.place.check() {
            return Err(CommitError::Refused(unreachable(error)));
        }
        let (connection, watch) = open.parts();
        // A handler forgot a savepoint: sqlx releases one at a time.
        let mut result = Ok(());
        while result.is_ok() && Manager::get_transaction_depth(connection) > 1 {
            result = Manager::commit(connection).await;
        }
        if Manager::get_transaction_depth(connection) == 0 {
            return Err(CommitError::Ended { undone: true });
        }
        let mut found = Found::Nothing;
        if result.is_ok() {
            watch.ask(connection, Question::Commit);
            result = open.end(End::Commit).await;
            open.watch.forbid_commit();
            found = open.watch.found();
        }
        let Err(error) = result else {
            return match found {
                Found::Open => Ok(open.committed()),
                // No hook of ours was asked.
                Found::Ended | Found::Nothing => Err(self.is_blind()),
            };
        };
        if found != Found::Open && open.watch.has_ended() {
            return Err(CommitError::Ended { undone: true });
        }
        if is_certain_refusal(&error) && !self.has_attached().await {
            return Err(CommitError::Refused(error));
        }
        let open = self.open_mut();
        // What the disk has of it is not known; the file is checked before anything else is written.
        open.file.in_doubt.store(true, Ordering::SeqCst);
        Err(CommitError::Unknown(error))
    }

    /// Rolls back, and makes sure that it was this transaction. One hop.
    pub(super) async fn rollback(&mut self) -> Result<(), RollbackError> {
        let open = self.open_mut();
        let is_blind = open.watch.is_blind();
        let (connection, watch) = open.parts();
        let mut result = Ok(());
        while result.is_ok() && Manager::get_transaction_depth(connection) > 1 {
            result = Manager::rollback(connection).await;
        }
        // By sqlx's count it is over: a handler has ended it, and may have changed the connection.
        let is_over = Manager::get_transaction_depth(connection) == 0;
        if result.is_ok() && !is_over {
            watch.ask(connection, Question::Rollback);
            result = open.end(End::Rollback).await;
        }
        let (found, has_ended) = (open.watch.found(), open.watch.has_ended());
        if is_blind {
            drop(self.is_blind());
            return Err(RollbackError::Ended { undone: false });
        }
        match result {
            Ok(()) if found == Found::Open && !is_over => Ok(()),
            Err(error) if !has_ended => Err(RollbackError::Lost(error)),
            // It had ended, and nothing of it stays: our hook refuses any other COMMIT. But the
            // connection may have been changed outside of it.
            Ok(()) | Err(_) => {
                self.give_up();
                Ok(())
            }
        }
    }

    /// Whether a handler has attached a file. COMMIT goes from file to file then, and what one of them
    /// refuses may stand in another.
    async fn has_attached(&mut self) -> bool {
        const ATTACHED: &str =
            "SELECT count(*) FROM temp.pragma_database_list() WHERE name NOT IN ('main', 'temp')";

        let attached = sqlx::query_scalar(ATTACHED).fetch_one(self.open_mut().connection_mut());
        let attached: sqlx::Result<i64> = attached.await;
        attached.map_or(true, |attached| attached > 0)
    }

    /// As the transaction is ended by closing its connection.
    pub(super) fn ending(&self) -> Ending {
        Ending::by(Arc::clone(&self.open().watch))
    }

    /// Queues a rollback that the connection does before anything else.
    pub(super) fn start_rollback(&mut self) {
        let open = self.open_mut();
        open.rolls_back = true;
        let (connection, watch) = open.parts();
        watch.ask(connection, Question::Rollback);
        for _ in 0..Manager::get_transaction_depth(connection) {
            Manager::start_rollback(connection);
        }
    }

    /// A callback of ours was replaced: whatever the handler ended, nobody has seen it.
    fn is_blind(&mut self) -> CommitError {
        tracing::error!(
            "a handler has set a commit or rollback hook, or the collation `rocket_tx_probe`, on the \
             writer's connection; nobody can say what became of its transaction"
        );
        self.give_up();
        CommitError::Ended { undone: false }
    }

    /// Has the connection closed when it comes back; the next request gets a new one.
    pub(super) fn give_up(&mut self) {
        self.give_up = true;
    }
}

impl Open {
    /// To be called when COMMIT has returned.
    fn committed(&mut self) -> Durability {
        match &self.file.sync {
            None => Durability::reached(),
            Some(sync) => sync.committed(&self.wal, !self.wal.is_unwritten()),
        }
    }
}

impl Deref for WriterSession {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.open().connection()
    }
}

impl DerefMut for WriterSession {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        let open = self.open_mut();
        // The only way for others to use it.
        open.is_asked_for_state = false;
        open.connection_mut()
    }
}

impl Drop for WriterSession {
    fn drop(&mut self) {
        if self.give_up {
            *self.turn = None;
        } else if let Some(open) = &mut *self.turn {
            // Now, while nobody waits for it: the next request is about to be woken.
            open.ask_for_state();
            open.keep_checkpoints();
        }
    }
}

/// The writer, for a few statements that are a transaction of their own.
pub struct OneShotWriter {
    writer: WriterSession,
    /// How long they wait for another process.
    busy_timeout: Duration,
}

impl OneShotWriter {
    pub(super) fn new(writer: WriterSession, busy_timeout: Duration) -> Self {
        Self {
            writer,
            busy_timeout,
        }
    }

    /// Runs the statements of `query` between BEGIN IMMEDIATE and COMMIT, all of it in one hop;
    /// returns the rows that they return.
    ///
    /// It does not wait for the disk. Leases need not survive a power cut, which ends all their
    /// holders too; and what is written under a lease stands behind it in the same log.
    ///
    /// Dropped half-way, it has the connection closed.
    pub async fn run(
        mut self,
        mut query: Query<'_, Sqlite, SqliteArguments>,
    ) -> sqlx::Result<Vec<SqliteRow>> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let arguments = arguments.unwrap_or_default();
        let sql = query.sql();
        let sql = format!("BEGIN IMMEDIATE; {}; COMMIT", sql.as_str());
        // Dropped half-way, nobody knows what it has done.
        self.writer.give_up = true;
        let result = self.try_run(&sql, arguments.clone()).await;
        let result = match self.writer.open().watch.is_as_made() {
            true => result,
            // Our hook has undone it.
            false => {
                self.writer.replace().await?;
                self.try_run(&sql, arguments).await
            }
        };
        self.writer.give_up = matches!(&result, Err(error) if !is_certain_refusal(error));
        result
    }

    async fn try_run(
        &mut self,
        sql: &str,
        arguments: SqliteArguments,
    ) -> sqlx::Result<Vec<SqliteRow>> {
        let busy_timeout = self.busy_timeout;
        let open = self.writer.open_mut();
        let query = sqlx::query_with(AssertSqlSafe(sql.to_owned()), arguments);
        open.watch.begun();
        open.ask_for_state();
        open.wait_for_others(busy_timeout);
        let (connection, watch) = open.parts();
        watch.ask(connection, Question::CommitIfAsMade);
        let result = query.fetch_all(&mut *connection).await;
        watch.forbid_commit();
        if result.is_err() {
            // After BUSY nothing is open, and SQLite says so.
            let _nothing = sqlx::raw_sql("ROLLBACK").execute(connection).await;
        }
        open.wait_as_usual(busy_timeout);
        result
    }
}
