//! The one connection of a SQLite file that writes, and the queue in front of it.
//!
//! Not a pool: a pool asks a connection whether it still answers whenever it comes back, in a task
//! of its own, and the next request waits for that. Here the next one in the queue is woken at
//! once.

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

/// The writer of a file. First come, first served.
pub(super) struct Writer {
    file: Arc<WriterFile>,
    /// How long a request waits for its turn.
    connect_timeout: Duration,
    /// Empty before first use, and after a connection was given up.
    open: Slot,
    closed: AtomicBool,
}

type Slot = Arc<Mutex<Option<Open>>>;

/// The writer's place, held by one who has the turn.
pub(super) type Turn = OwnedMutexGuard<Option<Open>>;

/// What it takes to open the writer's connection.
pub(super) struct WriterFile {
    pub(super) options: SqliteConnectOptions,
    /// How long it waits for another process as a rule.
    pub(super) busy_timeout: Duration,
    pub(super) place: Arc<Place>,
    /// Present if commits are to survive a power cut, which SQLite does not see to here.
    pub(super) sync: Option<SharedSync>,
    /// `extra`: the folder is synced with every sync.
    pub(super) with_folder: bool,
    /// The disk has failed, and the file has not been checked since.
    pub(super) in_doubt: Arc<AtomicBool>,
}

/// The connection, with what belongs to it.
pub(super) struct Open {
    /// Empty only in `Drop`.
    connection: Option<SqliteConnection>,
    pub(super) watch: Arc<Watch>,
    pub(super) wal: Arc<Wal>,
    pub(super) file: Arc<WriterFile>,
    /// Its last transaction was left to be rolled back by the connection itself.
    pub(super) rolls_back: bool,
    /// sqlx still counts the last transaction as open. We end transactions by statements of our own,
    /// behind which more can stand; sqlx's own COMMIT would have the connection's thread wait for
    /// our task.
    pub(super) counts_one_too_many: bool,
    /// It was asked whether it is as we made it, and nobody has used it since.
    pub(super) is_asked_for_state: bool,
    /// Counted for [`keep_checkpoints`](Open::keep_checkpoints).
    pub(super) uses: u32,
}

const OPEN: &str = "the connection is there until it is dropped";

impl Writer {
    pub(super) fn new(file: WriterFile, connect_timeout: Duration) -> Self {
        Self {
            file: Arc::new(file),
            connect_timeout,
            open: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Dropping the future gives up the place in the queue.
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
            // A task of its own: it may have to check the whole file, and a client that goes away
            // meanwhile must not have it begin anew. Everybody else waits in the queue.
            let opening = Box::pin(tokio::spawn(open_in_turn(Arc::clone(&self.file), turn)));
            turn = opening.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        }
        Ok(WriterSession::new(turn))
    }

    /// How long a request waits for its turn.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Waits for whoever has it. Nobody gets it afterwards.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(mut open) = self.open.lock().await.take() else {
            return;
        };
        // The last connection deletes the log, which must be synced before.
        if let Some(sync) = &open.file.sync {
            let _its_owner_is_told = sync.sync(&open.wal).wait().await;
        }
        if let Some(connection) = open.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "the writer did not end well");
        }
    }
}

async fn open_in_turn(file: Arc<WriterFile>, mut turn: Turn) -> sqlx::Result<Turn> {
    *turn = Some(Open::open(file).await.map_err(while_connecting)?);
    Ok(turn)
}

/// The file that was opened is not there.
pub(super) fn unreachable(error: io::Error) -> sqlx::Error {
    while_connecting(sqlx::Error::Io(error))
}

impl Open {
    pub(super) async fn open(file: Arc<WriterFile>) -> sqlx::Result<Self> {
        let mut connection = file.options.connect().await?;
        // Has SQLite open the log, and nobody delete it from now on.
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
                wal.sync_what_was_left()?;
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
            file,
            rolls_back: false,
            counts_one_too_many: false,
            is_asked_for_state: false,
            uses: 0,
        })
    }

    pub(super) fn connection(&self) -> &SqliteConnection {
        self.connection.as_ref().expect(OPEN)
    }

    pub(super) fn connection_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect(OPEN)
    }

    /// The connection and its watch, to be used together.
    pub(super) fn parts(&mut self) -> (&mut SqliteConnection, &Watch) {
        (self.connection.as_mut().expect(OPEN), &self.watch)
    }

    /// Whether the next request may have it.
    async fn is_usable(&mut self) -> bool {
        if self.wal.has_failed() {
            return false;
        }
        if self.watch.is_blind() || self.watch.is_touched() {
            return false;
        }
        let depth = usize::from(self.counts_one_too_many);
        if Manager::get_transaction_depth(self.connection()) == depth && !self.rolls_back {
            return true;
        }
        // A rollback is queued; it is done when the ping is answered. If it was not, the connection
        // believes in a transaction that SQLite, or a handler, has ended.
        let (connection, watch) = self.parts();
        let answered = connection.ping().await.is_ok();
        let is_over = Manager::get_transaction_depth(connection) == depth;
        let is_usable = answered && is_over && watch.found() == Found::Open;
        self.rolls_back = false;
        is_usable
    }

    /// Closes it and waits until its locks are gone, then opens another one in its place.
    pub(super) async fn replace(&mut self) -> sqlx::Result<()> {
        let file = Arc::clone(&self.file);
        if let Some(connection) = self.connection.take() {
            // What it has committed may not be synced yet, and the last connection deletes the log.
            if !self.wal.is_synced()
                && let Some(sync) = &file.sync
            {
                let _its_owner_is_told = sync.sync(&self.wal).wait().await;
            }
            connection.close().await?;
        }
        *self = Self::open(file).await.map_err(while_connecting)?;
        Ok(())
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

/// After the disk has failed. Nobody writes meanwhile, in no process.
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
            "the disk has failed, and the file is damaged ({said}); restore it from a backup"
        ))
        .into());
    }
    tracing::warn!("the disk had failed; the file was checked, and is written to again");
    Ok(())
}
