//! Detects whether a transaction has written to the write-ahead log.
//!
//! SQLite does not report this. Its commit hook is called for every BEGIN IMMEDIATE transaction,
//! `total_changes()` misses `PRAGMA user_version` and REINDEX, and the log does not grow while
//! SQLite overwrites it from its start.
//!
//! But each write sets the file's modification time, and POSIX requires that every later read of
//! that time sees the change. So a mark is set before COMMIT: a modification time that no later
//! write will set. If the mark is still there after COMMIT, nothing was written.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// The modification time that was last set on a log.
#[derive(Debug, Default)]
pub(super) struct Mark {
    time: Mutex<Option<SystemTime>>,
    /// A write has removed a mark, so this file system is known to behave as POSIX requires.
    is_proved: AtomicBool,
}

impl Mark {
    /// Sets a mark. If that fails, or on systems without marks, everything counts as written.
    pub(super) fn set(&self, file: &File) {
        // On other systems the time may change only when the file is closed.
        if !cfg!(unix) {
            return;
        }
        // The time is in the past, so no write will set it again. It is random, so two marks
        // differ: a program that compares files by their times sees that this file may have
        // changed.
        let nanos = fastrand::u64(0..1_000_000_000);
        let time = SystemTime::now() - Duration::from_secs(10) - Duration::from_nanos(nanos);
        let set = file.set_modified(time);
        // Read the time back: the file system may keep it less precisely.
        *self.time.lock() = set.and_then(|()| time_of(file)).ok();
    }

    /// Returns whether the last mark is still there, and removes the record of the mark: a second
    /// call returns `false`. Always `false` until marks are [known to work](Self::is_proved).
    pub(super) fn is_untouched(&self, file: &File) -> bool {
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

    /// Returns whether marks are known to work on this file system.
    pub(super) fn is_proved(&self) -> bool {
        self.is_proved.load(Ordering::SeqCst)
    }
}

fn time_of(file: &File) -> std::io::Result<SystemTime> {
    file.metadata()?.modified()
}
