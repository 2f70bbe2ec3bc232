//! The one connection of a SQLite file that writes, and the queue in front of it.
//!
//! Not a pool: a pool asks a connection whether it still answers whenever it comes back, in a task
//! of its own, and the next request waits for that. Here the next one in the queue is woken at
//! once.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions, Connection, Execute, SqlSafeStr, Sqlite};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::Patience;
use super::sqlite_watch::Watch;

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// The writer of a file. First come, first served.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// How long a request waits for its turn.
    patience: Duration,
    /// Empty before first use, and after a connection was given up.
    open: Arc<Mutex<Option<Open>>>,
    closed: AtomicBool,
}

struct Open {
    connection: SqliteConnection,
    watch: Arc<Watch>,
    /// What SQLite was last told, if that is certain.
    busy_timeout: Option<Duration>,
}

/// The writer, borrowed. Dropping it lets the next request have it.
pub(super) struct LentWriter {
    /// Never empty but in `Drop`.
    open: OwnedMutexGuard<Option<Open>>,
    give_up: bool,
}

const OPEN: &str = "the writer is open for as long as it is lent";

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, patience: Duration) -> Self {
        Self {
            options,
            patience,
            open: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Dropping the future gives up the place in the queue.
    pub(super) async fn acquire(&self, patience: Patience) -> sqlx::Result<LentWriter> {
        let open = Arc::clone(&self.open);
        let turn = match patience {
            Patience::Never => open.try_lock_owned().ok(),
            Patience::Wait | Patience::AtMost(_) => {
                timeout(self.patience, open.lock_owned()).await.ok()
            }
        };
        let mut open = turn.ok_or(sqlx::Error::PoolTimedOut)?;
        if self.closed.load(Ordering::SeqCst) {
            return Err(sqlx::Error::PoolClosed);
        }
        if let Some(Open { connection, .. }) = &mut *open
            && connection.is_in_transaction()
        {
            // A rollback may be queued; it is done when the ping is answered. If it was not, the
            // connection believes in a transaction that SQLite has ended by itself.
            let answered = connection.ping().await.is_ok();
            if !answered || connection.is_in_transaction() {
                *open = None;
            }
        }
        if open.is_none() {
            *open = Some(Box::pin(self.connect()).await?);
        }
        Ok(LentWriter {
            open,
            give_up: false,
        })
    }

    /// How long a request waits for its turn.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    async fn connect(&self) -> sqlx::Result<Open> {
        let mut connection = self.options.connect().await?;
        let watch = Arc::new(Watch::default());
        Arc::clone(&watch).install(&mut connection).await?;
        Ok(Open {
            connection,
            watch,
            busy_timeout: None,
        })
    }

    /// Waits for whoever has it. Nobody gets it afterwards.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(Open { connection, .. }) = self.open.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "the writer did not end well");
        }
    }
}

impl Open {
    /// What has SQLite wait so long for another process, unless it does anyway.
    fn setting(&self, busy_timeout: Duration) -> Option<String> {
        let millis = busy_timeout.as_millis();
        (self.busy_timeout != Some(busy_timeout)).then(|| format!("PRAGMA busy_timeout = {millis}"))
    }
}

impl LentWriter {
    pub(super) fn watch(&self) -> &Watch {
        &self.open.as_ref().expect(OPEN).watch
    }

    /// The connection and its watch, to be used together.
    pub(super) fn parts(&mut self) -> (&mut SqliteConnection, &Watch) {
        let Open {
            connection, watch, ..
        } = self.open.as_mut().expect(OPEN);
        (connection, watch)
    }

    /// Sends BEGIN IMMEDIATE, which waits `busy_timeout` at most for another process. One hop.
    pub(super) async fn begin(&mut self, busy_timeout: Duration) -> sqlx::Result<()> {
        let open = self.open.as_mut().expect(OPEN);
        let begin = match open.setting(busy_timeout) {
            None => "BEGIN IMMEDIATE".into_sql_str(),
            Some(setting) => {
                sqlx::AssertSqlSafe(format!("{setting}; BEGIN IMMEDIATE")).into_sql_str()
            }
        };
        // Dropped half-way, nobody knows which it is.
        open.busy_timeout = None;
        Manager::begin(&mut open.connection, Some(begin)).await?;
        open.busy_timeout = Some(busy_timeout);
        Ok(())
    }

    /// Has the connection closed when it comes back; the next request gets a new one.
    pub(super) fn give_up(&mut self) {
        self.give_up = true;
    }
}

impl Deref for LentWriter {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.open.as_ref().expect(OPEN).connection
    }
}

impl DerefMut for LentWriter {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.parts().0
    }
}

impl Drop for LentWriter {
    fn drop(&mut self) {
        if self.give_up {
            *self.open = None;
        }
    }
}

/// The writer, for a few statements that are a transaction of their own.
pub(crate) struct WholeWriter {
    writer: LentWriter,
    /// How long they wait for another process.
    busy_timeout: Duration,
}

impl WholeWriter {
    pub(super) fn new(writer: LentWriter, busy_timeout: Duration) -> Self {
        Self {
            writer,
            busy_timeout,
        }
    }

    /// Runs the statements of `query` between BEGIN IMMEDIATE and COMMIT, all of it in one hop;
    /// returns the rows that they return.
    ///
    /// Dropped half-way, it has the connection closed.
    pub(crate) async fn run(
        mut self,
        mut query: Query<'_, Sqlite, SqliteArguments>,
    ) -> sqlx::Result<Vec<SqliteRow>> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let open = self.writer.open.as_mut().expect(OPEN);
        let setting = open.setting(self.busy_timeout);
        // The setting answers with a row of its own.
        let not_ours = usize::from(setting.is_some());
        let setting = setting.map_or(String::new(), |setting| format!("{setting}; "));
        let sql = query.sql();
        let sql = format!("{setting}BEGIN IMMEDIATE; {}; COMMIT", sql.as_str());
        let query = sqlx::query_with(sqlx::AssertSqlSafe(sql), arguments.unwrap_or_default());
        // Dropped half-way, nobody knows what it has done.
        self.writer.give_up = true;
        open.busy_timeout = None;
        open.watch.begun();
        open.watch.allow_commit(true);
        let result = query.fetch_all(&mut open.connection).await;
        open.watch.allow_commit(false);
        match result {
            Ok(mut rows) => {
                open.busy_timeout = Some(self.busy_timeout);
                self.writer.give_up = false;
                Ok(rows.split_off(not_ours))
            }
            Err(error) => {
                // After BUSY nothing is open, and SQLite says so.
                let _nothing = sqlx::raw_sql("ROLLBACK")
                    .execute(&mut open.connection)
                    .await;
                self.writer.give_up = !matches!(error, sqlx::Error::Database(_));
                Err(error)
            }
        }
    }
}
