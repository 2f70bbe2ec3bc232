//! Opens and migrates a SQLite file while other processes use it.
//!
//! Many processes may open the same new file at the same moment. SQLite then returns BUSY from
//! places that its own busy handler does not cover, above all from the switch to WAL. The opening
//! as a whole is therefore retried, only on BUSY and LOCKED, with a limit on the attempts and on
//! the time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::Retryable;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Executor};

use crate::db::{FullJitter, OpenError, PoolError};

/// How long one attempt waits inside SQLite. It is short, so that the limit on the total time
/// holds.
const ATTEMPT: Duration = Duration::from_millis(250);

/// Counts for the whole process, because a file is opened before it belongs to a service.
static OPEN_RETRIES: AtomicU64 = AtomicU64::new(0);

/// Returns how often this process has retried to open or migrate a SQLite file because it was busy.
pub fn sqlite_open_retries() -> u64 {
    OPEN_RETRIES.load(Ordering::Relaxed)
}

/// A SQLite file, and how long opening it is retried while it is busy.
pub(in crate::db) struct SqliteFile {
    path: PathBuf,
    options: SqliteConnectOptions,
    busy_timeout: Duration,
}

impl SqliteFile {
    pub(in crate::db) fn new(options: SqliteConnectOptions, busy_timeout: Duration) -> Self {
        let path = options.get_filename().to_owned();
        Self {
            path,
            options,
            busy_timeout,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the file and its folder if they are missing, and makes sure that the file is in WAL
    /// mode.
    pub(in crate::db) async fn prepare(&self) -> Result<(), OpenError> {
        if let Some(folder) = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(|source| OpenError::Folder {
                folder: folder.to_owned(),
                source,
            })?;
        }
        if self.path.is_dir() {
            return Err(OpenError::IsDirectory(self.path.clone()));
        }
        let is_new = !self.path.exists();
        let mode = self
            .with_retries(|| async {
                let mut connection = self.connect().await?;
                let mode = ensure_wal(&mut connection).await?;
                connection.close().await?;
                Ok(mode)
            })
            .await
            .map_err(|error| self.explain(error))?;
        match mode.as_str() {
            "wal" => {
                // A relative path leads to another file if the service starts in another folder.
                if is_new && let Ok(path) = std::path::absolute(&self.path) {
                    tracing::info!("created the SQLite file {}", path.display());
                }
                Ok(())
            }
            _ => Err(OpenError::NoWal {
                path: self.path.clone(),
                mode,
            }),
        }
    }

    /// Runs the migrations in one `BEGIN IMMEDIATE` transaction on one connection. Afterwards
    /// either all of them are applied or the file is unchanged. Other processes that write wait
    /// meanwhile.
    pub(in crate::db) async fn migrate(&self, migrator: &Migrator) -> Result<(), PoolError> {
        self.with_retries(|| async {
            let mut connection = self.connect().await?;
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            migrator.run_direct(None, &mut *transaction, false).await?;
            transaction.commit().await?;
            connection.close().await?;
            Ok(())
        })
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) if is_sqlite_busy(&error) => {
                PoolError::Open(self.explain(error))
            }
            source => PoolError::Migrate {
                source,
                remains: "nothing was changed",
            },
        })
    }

    /// Connects. sqlx sets `busy_timeout` when it opens the handle, before any statement that can
    /// block.
    async fn connect(&self) -> sqlx::Result<SqliteConnection> {
        self.options.clone().busy_timeout(ATTEMPT).connect().await
    }

    /// Runs `attempt`, and again while it fails with BUSY or LOCKED, until `busy_timeout` is over.
    async fn with_retries<T, E, F, Fut>(&self, attempt: F) -> Result<T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: MaybeBusy,
    {
        let started = Instant::now();
        attempt
            .retry(FullJitter::at_most(1_000))
            .when(|error: &E| error.is_busy() && started.elapsed() < self.busy_timeout)
            .notify(|_, wait| {
                OPEN_RETRIES.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(file = %self.path.display(), ?wait, "the file is busy; trying again");
            })
            .await
    }

    /// Returns what an error of SQLite means for opening the file.
    pub(super) fn explain(&self, error: sqlx::Error) -> OpenError {
        let path = self.path.clone();
        match result_code(&error) {
            Some(BUSY | LOCKED) => OpenError::Locked {
                path,
                waited: self.busy_timeout,
            },
            Some(NOTADB) => OpenError::NotADatabase(path),
            // CANTOPEN: the file, or the journal beside it, cannot even be created.
            Some(READONLY | PERM | CANTOPEN) => OpenError::ReadOnly(path),
            _ => OpenError::Database(error),
        }
    }
}

/// Switches the file to WAL mode if necessary, and returns the mode that the file has now. If
/// SQLite refuses the switch, that is the old mode. The mode is read first, because the switch
/// needs exclusive access to the file.
///
/// Also detects a file in WAL mode that cannot be written, so that the launch fails and not the
/// first request. BEGIN IMMEDIATE does not detect it: on such a file it succeeds, but begins only a
/// read transaction. Therefore this writes something and rolls it back.
async fn ensure_wal(connection: &mut SqliteConnection) -> sqlx::Result<String> {
    let mut mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await?;
    if mode != "wal" {
        mode = sqlx::query_scalar("PRAGMA journal_mode = wal")
            .fetch_one(&mut *connection)
            .await?;
    }
    connection
        .execute("BEGIN IMMEDIATE; PRAGMA user_version = 1; ROLLBACK")
        .await?;
    Ok(mode)
}

const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// SQLite's primary result code: the low byte of the extended one.
/// <https://www.sqlite.org/rescode.html>
fn result_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Returns whether the error says that another connection or another process has locked the file.
pub fn is_sqlite_busy(error: &sqlx::Error) -> bool {
    matches!(result_code(error), Some(BUSY | LOCKED))
}

/// An error of opening a file, which says whether waiting may help.
trait MaybeBusy {
    fn is_busy(&self) -> bool;
}

impl MaybeBusy for sqlx::Error {
    fn is_busy(&self) -> bool {
        is_sqlite_busy(self)
    }
}

impl MaybeBusy for MigrateError {
    fn is_busy(&self) -> bool {
        matches!(self, MigrateError::Execute(error) if is_sqlite_busy(error))
            || matches!(self, MigrateError::ExecuteMigration(error, _) if is_sqlite_busy(error))
    }
}
