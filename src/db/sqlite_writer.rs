//! The one connection of a SQLite file that writes, and the queue in front of it.
//!
//! Not a pool: a pool asks a connection whether it still answers whenever it comes back, in a task
//! of its own, and the next request waits for that. Here the next one in the queue is woken at
//! once.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions, Connection, Execute, Executor, SqlSafeStr, Sqlite};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::sqlite_sync::{Place, SharedSync, Wal};
use super::sqlite_watch::Watch;
use super::{Durability, Patience};

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// The writer of a file. First come, first served.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// How long a request waits for its turn.
    patience: Duration,
    /// Empty before first use, and after a connection was given up.
    open: Arc<Mutex<Option<Open>>>,
    closed: AtomicBool,
    place: Arc<Place>,
    durable: Option<Arc<Durable>>,
}

/// What makes commits durable that SQLite itself does not sync.
pub(super) struct Durable {
    sync: SharedSync,
    /// `extra`.
    with_folder: bool,
    /// A sync has failed, and the file has not been checked since.
    in_doubt: AtomicBool,
}

impl Durable {
    pub(super) fn new(with_folder: bool) -> io::Result<Self> {
        Ok(Self {
            sync: SharedSync::start()?,
            with_folder,
            in_doubt: AtomicBool::new(false),
        })
    }
}

struct Open {
    /// Empty only in `Drop`.
    connection: Option<SqliteConnection>,
    watch: Arc<Watch>,
    log: Option<Log>,
    /// What SQLite was last told, if that is certain.
    busy_timeout: Option<Duration>,
}

/// The write-ahead log of a connection whose commits are synced by us.
struct Log {
    durable: Arc<Durable>,
    wal: Arc<Wal>,
    /// Something was committed; a sync of it may be under way.
    committed: bool,
}

/// The writer, borrowed. Dropping it lets the next request have it.
pub(super) struct LentWriter {
    /// Never empty but in `Drop`.
    open: OwnedMutexGuard<Option<Open>>,
    give_up: bool,
}

const OPEN: &str = "the writer is open for as long as it is lent";

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        patience: Duration,
        place: Arc<Place>,
        durable: Option<Durable>,
    ) -> Self {
        Self {
            options,
            patience,
            open: Arc::default(),
            closed: AtomicBool::new(false),
            place,
            durable: durable.map(Arc::new),
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
        self.place.check()?;
        if let Some(found) = &mut *open
            && !found.is_usable().await
        {
            *open = None;
        }
        if open.is_none() {
            let connecting = connect(
                self.options.clone(),
                Arc::clone(&self.place),
                self.durable.clone(),
                open,
            );
            // A task of its own: it may have to check the whole file, and a client that goes away
            // meanwhile must not have it begin anew. Everybody else waits in the queue.
            open = match tokio::spawn(connecting).await {
                Ok(opened) => opened?,
                Err(_panicked) => return Err(sqlx::Error::WorkerCrashed),
            };
        }
        Ok(LentWriter {
            open,
            give_up: false,
        })
    }

    /// Waits for whoever has it. Nobody gets it afterwards.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(mut open) = self.open.lock().await.take() else {
            return;
        };
        // The last connection deletes the log, which must be synced before.
        if let Some(log) = &mut open.log
            && log.durable.sync.sync(&log.wal).wait().await.is_ok()
        {
            log.committed = false;
        }
        if let Some(connection) = open.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "the writer did not end well");
        }
    }
}

/// Opens the writer's connection and puts it into its place.
async fn connect(
    options: SqliteConnectOptions,
    place: Arc<Place>,
    durable: Option<Arc<Durable>>,
    mut empty: OwnedMutexGuard<Option<Open>>,
) -> sqlx::Result<OwnedMutexGuard<Option<Open>>> {
    let mut connection = options.connect().await?;
    // Has SQLite open the log, and nobody delete it from now on.
    connection
        .execute("SELECT count(*) FROM sqlite_schema")
        .await?;
    let watch = Arc::new(Watch::default());
    Arc::clone(&watch).install(&mut connection).await?;
    let log = match durable {
        None => None,
        Some(durable) => {
            let (with_folder, in_doubt) =
                (durable.with_folder, durable.in_doubt.load(Ordering::SeqCst));
            let opening = spawn_blocking(move || Wal::open(place, with_folder));
            let wal = Arc::new(opening.await.map_err(io::Error::other)??);
            if in_doubt {
                check(&mut connection, &wal).await?;
                durable.in_doubt.store(false, Ordering::SeqCst);
            }
            Some(Log {
                durable,
                wal,
                committed: false,
            })
        }
    };
    *empty = Some(Open {
        connection: Some(connection),
        watch,
        log,
        busy_timeout: None,
    });
    Ok(empty)
}

/// After a sync that has failed. Nobody writes meanwhile, in no process.
async fn check(connection: &mut SqliteConnection, wal: &Arc<Wal>) -> sqlx::Result<()> {
    connection.execute("BEGIN IMMEDIATE").await?;
    let wal = Arc::clone(wal);
    let written = spawn_blocking(move || wal.write_anew()).await;
    written.map_err(io::Error::other)??;
    let said: String = sqlx::query_scalar("PRAGMA main.quick_check(1)")
        .fetch_one(&mut *connection)
        .await?;
    connection.execute("ROLLBACK").await?;
    if said != "ok" {
        return Err(io::Error::other(format!(
            "after a failed sync the file is damaged ({said}); restore it from a backup"
        ))
        .into());
    }
    tracing::warn!("after a failed sync the file was checked, and is written to again");
    Ok(())
}

impl Open {
    fn connection(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect(OPEN)
    }

    /// Whether the next request may have it.
    async fn is_usable(&mut self) -> bool {
        if let Some(log) = &self.log
            && log.wal.has_failed()
        {
            log.durable.in_doubt.store(true, Ordering::SeqCst);
            return false;
        }
        let connection = self.connection();
        if !connection.is_in_transaction() {
            return true;
        }
        // A rollback may be queued; it is done when the ping is answered. If it was not, the
        // connection believes in a transaction that SQLite has ended by itself.
        connection.ping().await.is_ok() && !connection.is_in_transaction()
    }

    /// What has SQLite wait so long for another process, unless it does anyway.
    fn setting(&self, busy_timeout: Duration) -> Option<String> {
        let millis = busy_timeout.as_millis();
        (self.busy_timeout != Some(busy_timeout)).then(|| format!("PRAGMA busy_timeout = {millis}"))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let (Some(log), Some(connection)) = (&self.log, self.connection.take())
            && log.committed
        {
            log.durable.sync.drop_after_sync(connection);
        }
    }
}

impl LentWriter {
    /// To be called when COMMIT has returned.
    pub(super) fn committed(&mut self) -> Durability {
        match &mut self.open.as_mut().expect(OPEN).log {
            None => Durability::reached(),
            Some(log) => {
                log.committed = true;
                log.durable.sync.sync(&log.wal)
            }
        }
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.open.as_ref().expect(OPEN).watch
    }

    /// The connection and its watch, to be used together.
    pub(super) fn parts(&mut self) -> (&mut SqliteConnection, &Watch) {
        let Open {
            connection, watch, ..
        } = self.open.as_mut().expect(OPEN);
        (connection.as_mut().expect(OPEN), watch)
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
        Manager::begin(open.connection(), Some(begin)).await?;
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
        let open = self.open.as_ref().expect(OPEN);
        open.connection.as_ref().expect(OPEN)
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
    /// It does not wait for the disk. Leases need not survive a power cut, which ends all their
    /// holders too; and what is written under a lease is later in the same log.
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
        let result = query.fetch_all(open.connection()).await;
        open.watch.allow_commit(false);
        match result {
            Ok(mut rows) => {
                open.busy_timeout = Some(self.busy_timeout);
                self.writer.give_up = false;
                Ok(rows.split_off(not_ours))
            }
            Err(error) => {
                // After BUSY nothing is open, and SQLite says so.
                let _nothing = sqlx::raw_sql("ROLLBACK").execute(open.connection()).await;
                self.writer.give_up = !matches!(error, sqlx::Error::Database(_));
                Err(error)
            }
        }
    }
}
