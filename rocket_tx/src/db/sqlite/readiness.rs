//! Whether a SQLite file can be written, without asking for the writer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::db::readiness::{NotReady, Readiness};

/// As much room as an ordinary transaction needs.
const CANARY: usize = 256 * 1024;

/// Writes a file beside the database now and then: the journal is written there too. The database
/// itself is not touched: closing any descriptor of it would drop SQLite's locks.
/// <https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>
#[derive(Default)]
pub(super) struct Probe {
    last: Readiness,
    /// Held while the file is written: a disk that hangs costs one thread.
    writing: Arc<Mutex<()>>,
}

impl Probe {
    pub(super) async fn ready(&self, database: &Path) -> Result<(), NotReady> {
        let database = database.to_owned();
        let writing = Arc::clone(&self.writing);
        self.last
            .verdict(async move {
                let looking = tokio::task::spawn_blocking(move || {
                    let _alone = writing.try_lock().ok_or(NotReady::Unreachable)?;
                    look(&database)
                });
                looking.await.unwrap_or(Err(NotReady::Unreachable))
            })
            .await
    }
}

fn look(database: &Path) -> Result<(), NotReady> {
    if !database.exists() {
        return Err(NotReady::Gone);
    }
    let canary = canary(database);
    let written = write(&canary);
    let _may_not_be_there = fs::remove_file(&canary);
    written.map_err(|error| {
        tracing::debug!(%error, canary = %canary.display(), "the database is not ready");
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => NotReady::DiskFull,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                NotReady::ReadOnly
            }
            _ => NotReady::Unreachable,
        }
    })
}

fn write(canary: &Path) -> io::Result<()> {
    let mut file = File::create(canary)?;
    file.write_all(&vec![0; CANARY])?;
    // Some file systems look for room no earlier.
    file.sync_data()
}

/// Another process may be looking after the same database.
fn canary(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(format!("-canary-{}", std::process::id()));
    name.into()
}
