//! The statements that begin and end a transaction of the writer, and those between two of them.

use std::time::Duration;

use sqlx::{AssertSqlSafe, SqlSafeStr, Sqlite};
use sqlx_core::transaction::TransactionManager;

use super::watch::{End, first_answer, send};
use super::writer::Open;

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

impl Open {
    /// Has the connection find out whether it is as we made it, unless it is doing that already.
    pub(super) fn ask_for_state(&mut self) {
        if !self.is_asked_for_state {
            let (connection, watch) = self.parts();
            watch.ask_for_state(connection);
            self.is_asked_for_state = true;
        }
    }

    /// Begins a transaction that may write.
    pub(super) async fn begin(&mut self) -> sqlx::Result<()> {
        const BEGIN: &str = "BEGIN IMMEDIATE";

        if self.counts_one_too_many {
            first_answer(self.connection_mut(), sqlx::query(BEGIN)).await?;
            self.counts_one_too_many = false;
            Ok(())
        } else {
            Manager::begin(self.connection_mut(), Some(BEGIN.into_sql_str())).await
        }
    }

    /// Ends the transaction that [`begin`](Self::begin) began.
    pub(super) async fn end(&mut self, end: End) -> sqlx::Result<()> {
        let (connection, watch) = self.parts();
        watch.end(connection, end).await?;
        self.counts_one_too_many = true;
        self.is_asked_for_state = true;
        Ok(())
    }

    /// Switches automatic checkpoints on once more, now and then: nothing but the size of the log shows
    /// that a request has switched them off, and looking at that costs more.
    pub(super) fn keep_checkpoints(&mut self) {
        /// So many uses can fill the log before it is noticed.
        const USES: u32 = 100;
        /// SQLite's own default, in pages.
        const ON: &str = "PRAGMA wal_autocheckpoint = 1000";

        self.uses = (self.uses + 1) % USES;
        if self.uses == 0 {
            // Not as a prepared statement: SQLite obeys this one when it prepares it.
            send(self.connection_mut(), sqlx::raw_sql(ON));
        }
    }

    /// How long the next statement waits for another process, and those behind it until
    /// [`wait_as_usual`](Self::wait_as_usual).
    pub(super) fn wait_for_others(&mut self, limit: Duration) {
        if limit != self.file.busy_timeout {
            self.set_busy_timeout(limit);
        }
    }

    pub(super) fn wait_as_usual(&mut self, limit: Duration) {
        if limit != self.file.busy_timeout {
            self.set_busy_timeout(self.file.busy_timeout);
        }
    }

    fn set_busy_timeout(&mut self, limit: Duration) {
        let sql = format!("PRAGMA busy_timeout = {}", limit.as_millis());
        // Not as a prepared statement: SQLite obeys this one when it prepares it.
        send(self.connection_mut(), sqlx::raw_sql(AssertSqlSafe(sql)));
    }
}
