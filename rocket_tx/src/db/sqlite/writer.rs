//! The one connection of a SQLite file that writes, and the queue in front of it.
//!
//! This connection is not in a pool. A pool pings each returned connection in a separate task, and
//! the next request waits for that ping. Here the next request in the queue is woken at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Executor, Sqlite};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::place::Place;
use super::sync::{SharedSync, Wal};
use super::watch::{Found, Watch};
use super::writer_session::WriterSession;
use crate::db::WaitPolicy;
use crate::db::error_class::while_connecting;

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// The writer of a file. Requests get it in order of arrival.
pub(super) struct Writer {
    file: Arc<WriterFile>,
    /// How long a request waits for its turn.
    connect_timeout: Duration,
    /// Empty before the first use, and after a connection was discarded.
    open: Slot,
    closed: AtomicBool,
}

type Slot = Arc<Mutex<Option<Open>>>;

/// The writer's slot, locked by the request whose turn it is.
pub(super) type Turn = OwnedMutexGuard<Option<Open>>;

/// All that is needed to open the writer's connection.
pub(super) struct WriterFile {
    pub(super) options: SqliteConnectOptions,
    /// How long it waits for another process, unless a request sets another limit.
    pub(super) busy_timeout: Duration,
    pub(super) place: Arc<Place>,
    /// Syncs the log instead of SQLite. `None` if commits need not survive a power cut.
    pub(super) sync: Option<SharedSync>,
    /// `synchronous = extra`: the folder is synced with every sync.
    pub(super) with_folder: bool,
    /// A sync has failed, or the outcome of a COMMIT is unknown, and the file has not been checked
    /// since.
    pub(super) in_doubt: Arc<AtomicBool>,
}

/// The open connection, and what belongs to it.
pub(super) struct Open {
    /// `None` only after the connection was taken out to be closed: in `Drop`, in [`Writer::close`]
    /// and in [`reopen`](Self::reopen).
    connection: Option<SqliteConnection>,
    pub(super) watch: Arc<Watch>,
    pub(super) wal: Arc<Wal>,
    pub(super) file: Arc<WriterFile>,
    /// A rollback of the last transaction is queued, and no task has waited for that rollback.
    pub(super) rolls_back: bool,
    /// sqlx still counts the last transaction as open, because we ended it by our own statement.
    /// Other statements can follow ours in the same message. After sqlx's own COMMIT the
    /// connection's thread would wait for our task instead.
    pub(super) counts_one_too_many: bool,
    /// How long its statements wait for another process now.
    pub(super) busy_timeout: Duration,
    /// A state check was queued, and the connection has not been used since.
    pub(super) is_state_check_queued: bool,
    /// The number of uses, for [`keep_checkpoints`](Open::keep_checkpoints).
    pub(super) uses: u32,
}

const OPEN: &str = "the writer has a connection until it is dropped";

impl Writer {
    pub(super) fn new(file: WriterFile, connect_timeout: Duration) -> Self {
        Self {
            file: Arc::new(file),
            connect_timeout,
            open: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Waits in the queue for the writer, and checks it out.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the request leaves the queue.
    pub(super) async fn acquire(&self, wait: WaitPolicy) -> sqlx::Result<WriterSession> {
        let open = Arc::clone(&self.open);
        let turn = if wait.queues() {
            let turn = timeout(self.connect_timeout, open.lock_owned()).await;
            turn.ok()
        } else {
            open.try_lock_owned().ok()
        };
        let mut turn = turn.ok_or(sqlx::Error::PoolTimedOut)?;
        if self.closed.load(Ordering::SeqCst) {
            return Err(sqlx::Error::PoolClosed);
        }
        self.file.place.check().map_err(unreachable)?;
        if let Some(found) = &mut *turn
            && !found.is_usable().await
        {
            *turn = None;
        }
        if turn.is_none() {
            // Open in a separate task. Opening may include a check of the whole file. If the client
            // disconnects meanwhile, the check continues and need not start again. All other
            // requests wait in the queue until then.
            let opening = Box::pin(tokio::spawn(open_in_turn(Arc::clone(&self.file), turn)));
            turn = opening.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        }
        Ok(WriterSession::new(turn))
    }

    /// Returns how long a request waits for its turn.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Waits for the request that has the writer, and then closes the connection. After this call
    /// no request gets the writer.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(mut open) = self.open.lock().await.take() else {
            return;
        };
        // The last connection deletes the log when it is closed, so the log must be synced first. A
        // failed sync is reported by the commits that wait for it.
        if let Some(sync) = &open.file.sync {
            let _reported_by_commit = sync.sync(&open.wal).wait().await;
        }
        if let Some(connection) = open.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "could not close the writer's connection");
        }
    }
}

async fn open_in_turn(file: Arc<WriterFile>, mut turn: Turn) -> sqlx::Result<Turn> {
    *turn = Some(Open::open(file).await.map_err(while_connecting)?);
    Ok(turn)
}

/// Gives the error of [`Place::check`] the class `Unreachable`: the file that was opened is no
/// longer there.
pub(super) fn unreachable(error: io::Error) -> sqlx::Error {
    while_connecting(sqlx::Error::Io(error))
}

impl Open {
    pub(super) async fn open(file: Arc<WriterFile>) -> sqlx::Result<Self> {
        let mut connection = file.options.connect().await?;
        // Makes SQLite open the log. From now on no other connection deletes it.
        connection
            .execute("SELECT count(*) FROM sqlite_schema")
            .await?;
        let watch = Watch::new();
        watch.install(&mut connection).await?;
        let opening = Arc::clone(&file);
        let wal = spawn_blocking(move || {
            let in_doubt = Arc::clone(&opening.in_doubt);
            let wal = Wal::open(Arc::clone(&opening.place), opening.with_folder, in_doubt)?;
            if opening.sync.is_some() {
                wal.sync_leftovers()?;
            }
            Ok::<_, io::Error>(Arc::new(wal))
        });
        let wal = wal.await.map_err(io::Error::other)??;
        if file.sync.is_some() {
            watch.mark_before_commit(&wal);
        }
        if file.in_doubt.load(Ordering::SeqCst) {
            check(&mut connection, &wal).await?;
            file.in_doubt.store(false, Ordering::SeqCst);
        }
        Ok(Self {
            connection: Some(connection),
            watch,
            wal,
            busy_timeout: file.busy_timeout,
            file,
            rolls_back: false,
            counts_one_too_many: false,
            is_state_check_queued: false,
            uses: 0,
        })
    }

    pub(super) fn connection(&self) -> &SqliteConnection {
        self.connection.as_ref().expect(OPEN)
    }

    pub(super) fn connection_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect(OPEN)
    }

    /// Returns the connection and its watch, to be used together.
    pub(super) fn parts(&mut self) -> (&mut SqliteConnection, &Watch) {
        (self.connection.as_mut().expect(OPEN), &self.watch)
    }

    /// Returns whether the next request may get this connection.
    async fn is_usable(&mut self) -> bool {
        if self.wal.has_failed() {
            return false;
        }
        if self.watch.are_hooks_replaced() || self.watch.is_altered() {
            return false;
        }
        let depth = usize::from(self.counts_one_too_many);
        if Manager::get_transaction_depth(self.connection()) == depth && !self.rolls_back {
            return true;
        }
        // If a rollback is queued, it is done when the ping gets its reply. If the rollback failed,
        // because SQLite or a handler had already ended the transaction, sqlx still counts the
        // transaction as open.
        let (connection, watch) = self.parts();
        let has_replied = connection.ping().await.is_ok();
        let is_over = Manager::get_transaction_depth(connection) == depth;
        let is_usable = has_replied && is_over && watch.found() == Found::Open;
        self.rolls_back = false;
        is_usable
    }

    /// Closes the connection, waits until its locks are released, and opens another one.
    pub(super) async fn reopen(mut self) -> sqlx::Result<Self> {
        let file = Arc::clone(&self.file);
        if let Some(connection) = self.connection.take() {
            // The last connection deletes the log when it is closed, and the commits in the log may
            // not be synced yet. A failed sync is reported by the commits that wait for it.
            if !self.wal.is_synced()
                && let Some(sync) = &file.sync
            {
                let _reported_by_commit = sync.sync(&self.wal).wait().await;
            }
            connection.close().await?;
        }
        drop(self);
        Self::open(file).await.map_err(while_connecting)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let (Some(connection), Some(sync), true) = (
            self.connection.take(),
            &self.file.sync,
            !self.wal.is_synced(),
        ) {
            sync.drop_after_sync(connection);
        }
    }
}

/// Writes the log again and checks the file, after a failure of the disk. BEGIN IMMEDIATE keeps all
/// processes from writing meanwhile.
async fn check(connection: &mut SqliteConnection, wal: &Arc<Wal>) -> sqlx::Result<()> {
    connection.execute("BEGIN IMMEDIATE").await?;
    let wal = Arc::clone(wal);
    let written = spawn_blocking(move || wal.rewrite()).await;
    written.map_err(io::Error::other)??;
    let result: String = sqlx::query_scalar("PRAGMA main.quick_check(1)")
        .fetch_one(&mut *connection)
        .await?;
    connection.execute("ROLLBACK").await?;
    if result != "ok" {
        return Err(io::Error::other(format!(
            "the disk has failed, and the file is damaged ({result}); restore it from a backup"
        ))
        .into());
    }
    tracing::warn!("the disk had failed; the file was checked and is intact, so writes resume");
    Ok(())
}
