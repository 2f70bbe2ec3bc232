//! The one helper that every SQLite file is opened by.
//!
//! Many processes may open the same new file at the same moment. SQLite answers that with BUSY from
//! places that its own busy handler does not cover (the switch to WAL above all), so the opening as
//! a whole is retried, on BUSY and LOCKED only, bounded in attempts and in time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder, Retryable};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Executor};

use crate::db::{Error, OpenError};

/// How long one attempt waits inside SQLite. Short, so that the bound on the whole is kept.
const ATTEMPT: Duration = Duration::from_millis(250);

/// Of this process: a file is opened before there is anybody to tell.
static OPEN_RETRIES: AtomicU64 = AtomicU64::new(0);

/// How often this process has found a SQLite file busy when it was opened or migrated, and has
/// tried again.
pub fn sqlite_open_retries() -> u64 {
    OPEN_RETRIES.load(Ordering::Relaxed)
}

/// A SQLite file and how long it may be busy while it is opened.
pub(super) struct SqliteFile {
    path: PathBuf,
    options: SqliteConnectOptions,
    connect_timeout: Duration,
}

impl SqliteFile {
    pub(super) fn new(options: SqliteConnectOptions, connect_timeout: Duration) -> Self {
        let path = options.get_filename().to_owned();
        Self {
            path,
            options,
            connect_timeout,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file (and its folder) if it is missing, and sees to it that it is in WAL mode.
    pub(super) async fn prepare(&self) -> Result<(), OpenError> {
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
        let mode = self
            .patiently(|| async {
                let mut connection = self.connect().await?;
                let mode = ensure_wal(&mut connection).await?;
                connection.close().await?;
                Ok(mode)
            })
            .await
            .map_err(|error| self.explain(error))?;
        match mode.as_str() {
            "wal" => Ok(()),
            _ => Err(OpenError::NoWal {
                path: self.path.clone(),
                mode,
            }),
        }
    }

    /// Runs the migrations inside one `BEGIN IMMEDIATE` on one connection: either all of them are
    /// there afterwards, or the file is as it was, and other processes wait meanwhile.
    pub(super) async fn migrate(&self, migrator: &Migrator) -> Result<(), Error> {
        self.patiently(|| async {
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
                Error::Open(self.explain(error))
            }
            source => Error::Migrate {
                source,
                remains: "nothing was changed",
            },
        })
    }

    /// `busy_timeout` is set by sqlx when it opens the handle, before any statement that can block.
    async fn connect(&self) -> sqlx::Result<SqliteConnection> {
        self.options.clone().busy_timeout(ATTEMPT).connect().await
    }

    async fn patiently<T, E, F, Fut>(&self, attempt: F) -> Result<T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: MaybeBusy,
    {
        let started = Instant::now();
        attempt
            .retry(FullJitter)
            .when(|error: &E| error.is_busy() && started.elapsed() < self.connect_timeout)
            .notify(|_, wait| {
                OPEN_RETRIES.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(file = %self.path.display(), ?wait, "busy while it is opened; trying again");
            })
            .await
    }

    /// What an error of SQLite means for whoever has to open the file.
    pub(super) fn explain(&self, error: sqlx::Error) -> OpenError {
        let path = self.path.clone();
        match result_code(&error) {
            Some(BUSY | LOCKED) => OpenError::Locked {
                path,
                waited: self.connect_timeout,
            },
            Some(NOTADB) => OpenError::NotADatabase(path),
            // CANTOPEN: the file, or the journal beside it, cannot even be made.
            Some(READONLY | PERM | CANTOPEN) => OpenError::ReadOnly(path),
            _ => OpenError::Database(error),
        }
    }
}

/// Reads the mode first: only a file that is not in WAL mode needs the switch, which wants the
/// file for itself. The answer is what the file is in now; a refused switch answers with the old
/// mode.
///
/// A file in WAL mode that cannot be written is found out here too, not by the first request. That
/// takes a write, which is rolled back: BEGIN IMMEDIATE on such a file begins to read.
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

/// Exponential backoff with full jitter: each wait is drawn from the whole of [0, step), so that
/// processes that started together do not come back together.
struct FullJitter;

impl BackoffBuilder for FullJitter {
    type Backoff = std::iter::Map<ExponentialBackoff, fn(Duration) -> Duration>;

    fn build(self) -> Self::Backoff {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(5))
            .with_max_delay(Duration::from_millis(400))
            .with_max_times(1_000)
            .build()
            .map(|step| step.mul_f64(fastrand::f64()))
    }
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

/// Another connection, or another process, is at the file.
pub fn is_sqlite_busy(error: &sqlx::Error) -> bool {
    matches!(result_code(error), Some(BUSY | LOCKED))
}

/// Errors that an opening can end in, and whether waiting may help.
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
