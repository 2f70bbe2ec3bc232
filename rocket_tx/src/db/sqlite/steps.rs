//! The statements that this library sends on the writer's connection: to begin and end a
//! transaction, and between two transactions.

use std::time::Duration;

use sqlx::{AssertSqlSafe, SqlSafeStr, Sqlite};
use sqlx_core::transaction::TransactionManager;

use super::watch::{End, first_reply, send};
use super::writer::Open;

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

impl Open {
    /// Queues a check whether the connection is unchanged since it was opened, unless such a check
    /// is already queued.
    pub(super) fn check_state(&mut self) {
        if !self.is_state_check_queued {
            // The check expects the limit of the file. Usually that is the one in force.
            self.set_busy_timeout(self.file.busy_timeout);
            let (connection, watch) = self.parts();
            watch.check_state(connection);
            self.is_state_check_queued = true;
        }
    }

    /// Begins a transaction that may write.
    pub(super) async fn begin(&mut self) -> sqlx::Result<()> {
        const BEGIN: &str = "BEGIN IMMEDIATE";

        if self.counts_one_too_many {
            first_reply(self.connection_mut(), sqlx::query(BEGIN)).await?;
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
        self.is_state_check_queued = true;
        Ok(())
    }

    /// Switches automatic checkpoints on again from time to time, in case a request has switched
    /// them off. The only sign of that would be the size of the log, and reading the size costs
    /// more.
    pub(super) fn keep_checkpoints(&mut self) {
        /// The number of uses between two such switches. If a request has switched checkpoints off,
        /// the log may grow for that long.
        const USES: u32 = 100;
        /// SQLite's own default, in pages.
        const ON: &str = "PRAGMA wal_autocheckpoint = 1000";

        self.uses = (self.uses + 1) % USES;
        if self.uses == 0 {
            // Not a prepared statement: SQLite obeys this pragma already when it is prepared.
            send(self.connection_mut(), sqlx::raw_sql(ON));
        }
    }

    /// Sets how long statements wait for another process, until the next call. Sends nothing if that
    /// is the limit in force. If a request has changed the limit itself, the state check after it finds
    /// that, and the connection is replaced.
    pub(super) fn set_busy_timeout(&mut self, limit: Duration) {
        if limit != self.busy_timeout {
            let sql = format!("PRAGMA busy_timeout = {}", limit.as_millis());
            // Not a prepared statement: SQLite obeys this pragma already when it is prepared.
            send(self.connection_mut(), sqlx::raw_sql(AssertSqlSafe(sql)));
            self.busy_timeout = limit;
        }
    }
}
