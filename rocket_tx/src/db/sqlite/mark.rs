//! Whether a transaction has written to the write-ahead log.
//!
//! SQLite does not tell. Its commit hook is called for every BEGIN IMMEDIATE, `total_changes()` misses
//! `PRAGMA user_version` and REINDEX, and the log does not grow while it is written anew from its
//! start. But a write sets the file's time of change, and POSIX has every later look see that. So a
//! time that no clock will show is set before COMMIT; if it is still there after COMMIT, nothing was
//! written.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// The time of change that a log was given last.
#[derive(Debug, Default)]
pub(super) struct Mark {
    time: Mutex<Option<SystemTime>>,
    /// A write was seen to take a mark away: this file system does as POSIX says.
    is_proved: AtomicBool,
}

impl Mark {
    /// Without one, everything counts as written.
    pub(super) fn set(&self, file: &File) {
        // Elsewhere the time may change only when the file is closed.
        if !cfg!(unix) {
            return;
        }
        // In the past: the clock will not show it again. Never the same twice, so that what compares
        // files by their times sees that this one has changed.
        let nanos = fastrand::u64(0..1_000_000_000);
        let time = SystemTime::now() - Duration::from_secs(10) - Duration::from_nanos(nanos);
        let set = file.set_modified(time);
        // As the file system keeps it, which may be less precise.
        *self.time.lock() = set.and_then(|()| time_of(file)).ok();
    }

    /// Whether the last one is still there. It counts once.
    pub(super) fn stands(&self, file: &File) -> bool {
        let Some(time) = self.time.lock().take() else {
            return false;
        };
        match time_of(file) {
            Ok(found) if found == time => self.is_proved.load(Ordering::SeqCst),
            Ok(_) => {
                self.is_proved.store(true, Ordering::SeqCst);
                false
            }
            Err(_) => false,
        }
    }

    pub(super) fn is_proved(&self) -> bool {
        self.is_proved.load(Ordering::SeqCst)
    }
}

fn time_of(file: &File) -> std::io::Result<SystemTime> {
    file.metadata()?.modified()
}
