//! The writer while one transaction has it checked out.

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
use crate::db::{CommitError, Decision, Durability, Ending, RollbackError};

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// The checked-out writer. Dropping it lets the next request have the writer.
pub(super) struct WriterSession {
    /// Empty in `Drop`, and from the moment when [`replace`](Self::replace) closes the connection
    /// until it has opened another one. If that fails or the future is dropped, the slot stays
    /// empty. No transaction is open then.
    turn: Turn,
    /// The connection is closed on drop, and the next request gets a new one.
    close_on_drop: bool,
}

const CHECKED_OUT: &str = "a checked-out writer is open";

impl WriterSession {
    pub(super) fn new(turn: Turn) -> Self {
        Self {
            turn,
            close_on_drop: false,
        }
    }

    fn open(&self) -> &Open {
        self.turn.as_ref().expect(CHECKED_OUT)
    }

    fn open_mut(&mut self) -> &mut Open {
        self.turn.as_mut().expect(CHECKED_OUT)
    }

    /// Sends BEGIN IMMEDIATE, which waits at most `busy_timeout` for another process. One hop (a
    /// message to the connection's thread and its reply).
    ///
    /// If an earlier request has changed the connection, `begin` detects that and opens another
    /// connection.
    pub(super) async fn begin(&mut self, busy_timeout: Duration) -> sqlx::Result<()> {
        if self.try_begin(busy_timeout).await? {
            return Ok(());
        }
        tracing::debug!("a request had changed the writer's connection; opening another one");
        self.replace().await?;
        match self.try_begin(busy_timeout).await? {
            true => Ok(()),
            // A new connection is unchanged, so this does not happen.
            false => Err(sqlx::Error::BeginFailed),
        }
    }

    /// Begins a transaction. Returns `false` if the connection was changed since it was opened.
    async fn try_begin(&mut self, busy_timeout: Duration) -> sqlx::Result<bool> {
        // Without a connection, an earlier attempt to replace it has failed.
        let open = self.turn.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        // Usually a check was queued right after the last COMMIT and is done by now. Then this
        // queues no other check.
        open.check_state();
        open.set_busy_timeout(busy_timeout);
        let begun = open.begin().await;
        // The statements of the handler wait as configured.
        open.set_busy_timeout(open.file.busy_timeout);
        let watch = &open.watch;
        if !watch.is_unchanged() {
            // Ignore an error of BEGIN: the change may be its reason.
            return Ok(false);
        }
        watch.begun();
        begun.map(|()| true)
    }

    /// Closes the connection and opens another one.
    async fn replace(&mut self) -> sqlx::Result<()> {
        if let Some(open) = self.turn.take() {
            // Boxed, so that the future stays small for a handler that does not need this.
            *self.turn = Some(Box::pin(open.reopen()).await?);
        }
        Ok(())
    }

    /// Proves that COMMIT would commit, and reserves disk space for it. One hop.
    pub(super) async fn prepare(&mut self) -> Result<(), CommitError> {
        let open = self.open_mut();
        if open.watch.are_hooks_replaced() {
            return Err(self.hooks_replaced());
        }
        let (connection, watch) = open.parts();
        let broken = watch.is_constraint_broken(connection).await;
        // Read this after the probe: by then all statements that were in the queue are done.
        if watch.has_ended() {
            return Err(CommitError::Ended { undone: true });
        }
        match broken {
            Ok(false) => {}
            Ok(true) => return Err(CommitError::ConstraintBroken),
            Err(error) => return Err(CommitError::Refused(error)),
        }
        let open = self.open();
        let place = open.file.place.check();
        place.map_err(|error| CommitError::Refused(unreachable(error)))?;
        let reserved = open.wal.reserve();
        reserved.map_err(|error| CommitError::Refused(error.into()))
    }

    /// Inserts the decision, and commits. Two hops.
    pub(super) async fn decide(&mut self, decision: &Decision) -> Result<Durability, CommitError> {
        let insert = format!(
            "INSERT INTO {} (id, decision, participants) VALUES ($1, 'commit', $2)",
            decision.table
        );
        let inserted = sqlx::query(AssertSqlSafe(insert))
            .bind(decision.id.to_string())
            .bind(decision.participants())
            .execute(&mut **self)
            .await;
        match inserted {
            Ok(inserted) if inserted.rows_affected() == 1 => {}
            // A trigger has prevented it.
            Ok(_) => {
                let error = sqlx::Error::Protocol("the decision was not inserted".into());
                return Err(CommitError::Refused(error));
            }
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                return Err(CommitError::DecidedToAbort);
            }
            Err(error) => return Err(CommitError::Refused(error)),
        }
        let reserved = self.open().wal.reserve();
        reserved.map_err(|error| CommitError::Refused(error.into()))?;
        self.commit().await
    }

    /// Commits. One hop.
    pub(super) async fn commit(&mut self) -> Result<Durability, CommitError> {
        let open = self.open_mut();
        if open.watch.are_hooks_replaced() {
            return Err(self.hooks_replaced());
        }
        if let Err(error) = open.file.place.check() {
            return Err(CommitError::Refused(unreachable(error)));
        }
        let (connection, watch) = open.parts();
        // If the handler left savepoints open, sqlx releases one at a time.
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
                // COMMIT succeeded although our hook would have refused it. So a handler has
                // replaced the hook.
                Found::Ended | Found::Nothing => Err(self.hooks_replaced()),
            };
        };
        if found != Found::Open && open.watch.has_ended() {
            return Err(CommitError::Ended { undone: true });
        }
        if is_certain_refusal(&error) && !self.has_attached().await {
            return Err(CommitError::Refused(error));
        }
        let open = self.open_mut();
        // It is unknown how much of the commit is on the disk. Because of this flag, the next
        // request opens another connection, and the file is checked before it is written again.
        open.file.in_doubt.store(true, Ordering::SeqCst);
        Err(CommitError::Unknown(error))
    }

    /// Rolls back, and makes sure that this ended the transaction that we began. One hop.
    pub(super) async fn rollback(&mut self) -> Result<(), RollbackError> {
        let open = self.open_mut();
        let are_hooks_replaced = open.watch.are_hooks_replaced();
        let (connection, watch) = open.parts();
        let mut result = Ok(());
        while result.is_ok() && Manager::get_transaction_depth(connection) > 1 {
            result = Manager::rollback(connection).await;
        }
        // If sqlx counts no open transaction, a handler has ended it, and may have changed the
        // connection afterwards.
        let is_over = Manager::get_transaction_depth(connection) == 0;
        if result.is_ok() && !is_over {
            watch.ask(connection, Question::Rollback);
            result = open.end(End::Rollback).await;
        }
        let (found, has_ended) = (open.watch.found(), open.watch.has_ended());
        if are_hooks_replaced {
            drop(self.hooks_replaced());
            return Err(RollbackError::Ended { undone: false });
        }
        match result {
            Ok(()) if found == Found::Open && !is_over => Ok(()),
            Err(error) if !has_ended => Err(RollbackError::Lost(error)),
            // The transaction had already ended. Nothing of it is committed, because our hook
            // refuses every other COMMIT. But the handler may have changed the connection
            // afterwards.
            Ok(()) | Err(_) => {
                self.close_on_drop();
                Ok(())
            }
        }
    }

    /// Returns whether a handler has attached another file. COMMIT then commits one file after the
    /// other: if one of them fails, another one may already be committed.
    async fn has_attached(&mut self) -> bool {
        const ATTACHED: &str =
            "SELECT count(*) FROM temp.pragma_database_list() WHERE name NOT IN ('main', 'temp')";

        let attached = sqlx::query_scalar(ATTACHED).fetch_one(self.open_mut().connection_mut());
        let attached: sqlx::Result<i64> = attached.await;
        attached.map_or(true, |attached| attached > 0)
    }

    /// Returns the `Ending` of the transaction. The caller must close the connection.
    pub(super) fn ending(&self) -> Ending {
        Ending::by(Arc::clone(&self.open().watch))
    }

    /// Queues a rollback. The connection runs it before any later statement.
    pub(super) fn start_rollback(&mut self) {
        // Without a connection no transaction is open: `begin` failed or was dropped while it
        // replaced the connection.
        let Some(open) = &mut *self.turn else {
            return;
        };
        open.rolls_back = true;
        let (connection, watch) = open.parts();
        watch.ask(connection, Question::Rollback);
        for _ in 0..Manager::get_transaction_depth(connection) {
            Manager::start_rollback(connection);
        }
    }

    /// Logs that a handler has replaced a callback of ours, and returns the error for that. Without
    /// our callbacks it cannot be detected whether the handler has ended the transaction.
    fn hooks_replaced(&mut self) -> CommitError {
        tracing::error!(
            "a handler has set a commit or rollback hook, or the collation `rocket_tx_probe`, on \
             the writer's connection; the outcome of its transaction is unknown; do not set them there"
        );
        self.close_on_drop();
        CommitError::Ended { undone: false }
    }

    /// Makes `Drop` close the connection. The next request gets a new one.
    pub(super) fn close_on_drop(&mut self) {
        self.close_on_drop = true;
    }
}

impl Open {
    /// Returns the wait until the commit is durable. Call this after COMMIT has returned.
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
        // Handlers can use the connection only through this method, so the last state check is
        // outdated.
        open.is_state_check_queued = false;
        open.connection_mut()
    }
}

impl Drop for WriterSession {
    fn drop(&mut self) {
        if self.close_on_drop {
            *self.turn = None;
        } else if let Some(open) = &mut *self.turn {
            // Queue the check now, before the next request is woken. The check may then be done
            // before that request begins.
            open.check_state();
            open.keep_checkpoints();
        }
    }
}

/// The writer, checked out for a few statements that run as one separate transaction.
pub struct OneShotWriter {
    writer: WriterSession,
    /// How long the statements wait for another process.
    busy_timeout: Duration,
}

impl OneShotWriter {
    pub(super) fn new(writer: WriterSession, busy_timeout: Duration) -> Self {
        Self {
            writer,
            busy_timeout,
        }
    }

    /// Runs the statements of `query` between BEGIN IMMEDIATE and COMMIT, all in one hop, and
    /// returns their rows.
    ///
    /// Does not wait for the disk. This is meant for leases. A lease need not survive a power cut,
    /// because the power cut also ends all processes that hold leases. And writes under a lease
    /// come after the lease in the same log, so they are not durable before the lease is.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped half-way, the connection is closed.
    pub async fn run(
        mut self,
        mut query: Query<'_, Sqlite, SqliteArguments>,
    ) -> sqlx::Result<Vec<SqliteRow>> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let arguments = arguments.unwrap_or_default();
        let sql = query.sql();
        let sql = format!("BEGIN IMMEDIATE; {}; COMMIT", sql.as_str());
        // If the future is dropped half-way, it is unknown which statements have run.
        self.writer.close_on_drop = true;
        let result = self.try_run(&sql, arguments.clone()).await;
        let result = match self.writer.open().watch.is_unchanged() {
            true => result,
            // The connection was changed, so our commit hook has refused the COMMIT.
            false => {
                self.writer.replace().await?;
                self.try_run(&sql, arguments).await
            }
        };
        self.writer.close_on_drop = matches!(&result, Err(error) if !is_certain_refusal(error));
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
        open.check_state();
        // Stays in force: the next user of the writer sets the limit that it needs.
        open.set_busy_timeout(busy_timeout);
        let (connection, watch) = open.parts();
        watch.ask(connection, Question::CommitIfUnchanged);
        let result = query.fetch_all(&mut *connection).await;
        watch.forbid_commit();
        if result.is_err() {
            // After BUSY no transaction is open, and ROLLBACK fails. That is expected.
            let _may_fail = sqlx::raw_sql("ROLLBACK").execute(connection).await;
        }
        result
    }
}
