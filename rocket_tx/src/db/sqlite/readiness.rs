//! Checks whether a SQLite file can be written, without using the writer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::db::readiness::{NotReady, Readiness};

/// The size of the file that the check writes, in bytes: as much as an ordinary transaction needs.
const CANARY: usize = 256 * 1024;

/// Checks the database by writing another file beside it, because the journal is written there too.
/// The database file itself is not opened: closing any descriptor of it would drop SQLite's locks.
/// <https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>
#[derive(Default)]
pub(super) struct Probe {
    last: Readiness,
    /// Locked while the file is written. If the disk hangs, only one thread is blocked.
    writing: Arc<Mutex<()>>,
}

impl Probe {
    pub(super) async fn ready(&self, database: &Path) -> Result<(), NotReady> {
        let database = database.to_owned();
        let writing = Arc::clone(&self.writing);
        self.last
            .latest(async move {
                let checking = tokio::task::spawn_blocking(move || {
                    let _alone = writing.try_lock().ok_or(NotReady::Unreachable)?;
                    check(&database)
                });
                checking.await.unwrap_or(Err(NotReady::Unreachable))
            })
            .await
    }
}

fn check(database: &Path) -> Result<(), NotReady> {
    if !database.exists() {
        return Err(NotReady::Gone);
    }
    let canary = canary(database);
    let written = write(&canary);
    let _may_not_exist = fs::remove_file(&canary);
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
    // Some file systems allocate the space only at a sync.
    file.sync_data()
}

/// Returns the path of the file to write. It contains the process id, because another process may
/// check the same database.
fn canary(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(format!("-canary-{}", std::process::id()));
    name.into()
}
