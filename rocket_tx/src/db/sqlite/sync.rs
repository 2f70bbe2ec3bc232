//! Shared sync: one sync of the write-ahead log serves all commits before it.
//!
//! The writer commits as with `synchronous = normal`, that is without a sync, and goes on to the
//! next request. A commit is reported only after an `fdatasync` of the `-wal` file that began after
//! COMMIT had returned. While one sync runs, the next batch of commits gathers.
//!
//! A separate file descriptor of the `-wal` file is safe. SQLite keeps its locks on the database
//! file and on `-shm`, and none on `-wal`. (On a file with locks, closing any descriptor of the
//! file drops all locks that the process has on it.)
//!
//! Before the sync of a commit begins, SQLite may reset the log and overwrite the frames of the
//! commit. The commit is durable all the same: SQLite resets the log only after a checkpoint, which
//! has synced the log, copied all of it to the database file, and synced the database file. SQLite
//! does this at `normal` as it does at `full`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use tokio::sync::oneshot;

use super::mark::Mark;
use super::place::{FileId, Place};
use crate::db::Durability;

/// The write-ahead log, as opened for one connection of the writer. SQLite deletes the log only
/// when the last connection is closed, so the log stays the same file while that connection is
/// open.
#[derive(Debug)]
pub(super) struct Wal {
    place: Arc<Place>,
    file: File,
    id: FileId,
    /// `synchronous = extra`: the folder is synced with every sync.
    with_folder: bool,
    /// The number of commits that need a sync.
    committed: AtomicU64,
    /// The number of those commits that are synced.
    synced: AtomicU64,
    mark: Mark,
    /// A sync has failed. The kernel reports that only once, and may have dropped the pages that it
    /// could not write. A second sync that succeeds would therefore prove nothing.
    failed: AtomicBool,
    /// The file must be checked before it is written again. All `Wal`s of the file share this flag,
    /// because a connection that is opened after a failed sync has another `Wal`, possibly for the
    /// same log.
    in_doubt: Arc<AtomicBool>,
}

impl Wal {
    /// Opens the log. The log exists once the connection has read from the database file.
    pub(super) fn open(
        place: Arc<Place>,
        with_folder: bool,
        in_doubt: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&place.wal)?;
        let id = FileId::of(&file.metadata()?);
        Ok(Self {
            place,
            file,
            id,
            with_folder,
            committed: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            mark: Mark::default(),
            failed: AtomicBool::new(false),
            in_doubt,
        })
    }

    /// Syncs the log's name, and the commits that a killed process may have left in the log: other
    /// connections may read them from now on.
    pub(super) fn sync_leftovers(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.place.sync_folder()
    }

    /// Reserves disk space for the pages that SQLite still keeps in memory, so that COMMIT does not
    /// fail on a full disk. With several databases, the second one must not find the disk full
    /// after the first is committed.
    ///
    /// SQLite writes pages beyond its cache to the log before COMMIT. The cache is 2 MB unless the
    /// same transaction has set `cache_size` or `cache_spill`. The reserved blocks stay with the
    /// log, beyond its end.
    ///
    /// Space in the `-shm` file cannot be reserved; it grows by 32 KiB every 4,096 pages. Some file
    /// systems can reserve nothing.
    ///
    /// # Errors
    ///
    /// There is not enough space.
    pub(super) fn reserve(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            use rustix::io::Errno;

            const CACHE: u64 = 2_048_000;
            /// Frames have headers, and pages in use can exceed a full cache.
            const RESERVE: u64 = CACHE + CACHE / 8;

            let end = self.file.metadata()?.len();
            if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) =
                fallocate(&self.file, FallocateFlags::KEEP_SIZE, end, RESERVE)
            {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!(
                        "could not reserve {RESERVE} bytes for the write-ahead log of {}: {error}; \
                         free disk space",
                        self.place.database.display()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Returns whether a sync of this `Wal` has failed, or the file is in doubt and must be checked
    /// first.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.in_doubt.load(Ordering::SeqCst)
    }

    /// Returns whether all commits so far are synced.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::SeqCst) == self.committed.load(Ordering::SeqCst)
    }

    /// Sets a [mark](super::mark), which a write removes. Call this before COMMIT, while the caller
    /// keeps all other connections from writing.
    pub(super) fn mark(&self) {
        self.mark.set(&self.file);
    }

    /// Returns whether marks are known to work on this file system.
    pub(super) fn is_mark_proved(&self) -> bool {
        self.mark.is_proved()
    }

    /// Returns whether nothing was written since [`mark`](Self::mark), so that there is nothing to
    /// sync.
    pub(super) fn is_unwritten(&self) -> bool {
        self.mark.is_untouched(&self.file)
    }

    fn sync(&self) -> io::Result<()> {
        if self.has_failed() {
            return Err(io::Error::other("an earlier sync of this log has failed"));
        }
        // Read the number before the sync: the sync may not cover a commit that comes meanwhile.
        let committed = self.committed.load(Ordering::SeqCst);
        let synced = self.try_sync();
        if synced.is_ok() {
            self.synced.fetch_max(committed, Ordering::SeqCst);
        }
        if let Err(error) = &synced {
            self.failed.store(true, Ordering::SeqCst);
            self.in_doubt.store(true, Ordering::SeqCst);
            tracing::error!(
                file = %self.place.database.display(), %error,
                "could not sync the write-ahead log; writes stop until the file has been reopened \
                 and checked"
            );
        }
        synced
    }

    fn try_sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.with_folder {
            self.place.sync_folder()?;
        }
        // If the log or the database was deleted or replaced, this was a sync of the wrong file.
        if FileId::at(&self.place.wal).ok() != Some(self.id) {
            self.place.log_was_replaced.store(true, Ordering::SeqCst);
        }
        self.place.check()
    }

    /// Writes the log again after a failed sync, from the pages that the kernel still holds, and
    /// syncs it.
    ///
    /// If the kernel has dropped a page, the old content is read from the disk. The caller must
    /// then check the whole file, which detects such a page. The caller must also keep all other
    /// connections from writing.
    pub(super) fn rewrite(&self) -> io::Result<()> {
        let mut from = &self.file;
        let mut to = OpenOptions::new().write(true).open(&self.place.wal)?;
        from.seek(SeekFrom::Start(0))?;
        // A loop of our own: `io::copy` may make the kernel share the blocks and write nothing.
        let mut piece = vec![0; 1 << 20];
        loop {
            match from.read(&mut piece)? {
                0 => break,
                length => to.write_all(&piece[..length])?,
            }
        }
        to.sync_data()
    }
}

/// A handle of the sync thread. The thread ends when the handle is dropped and all jobs are done.
#[derive(Debug)]
pub(super) struct SharedSync(mpsc::Sender<Job>);

enum Job {
    Sync {
        wal: Arc<Wal>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Drops a connection after the next sync.
    Drop(Box<dyn Send>),
}

impl SharedSync {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel();
        // A separate thread, so that other blocking work of the service does not delay the syncs.
        thread::Builder::new()
            .name("sqlite-sync".into())
            .spawn(move || run(&jobs))?;
        Ok(Self(sender))
    }

    /// Returns the wait until a commit is durable. Call this after COMMIT has returned, while the
    /// caller still has the writer.
    ///
    /// A transaction that wrote nothing may have read commits that are not durable yet, so it waits
    /// for those.
    pub(super) fn committed(&self, wal: &Arc<Wal>, has_written: bool) -> Durability {
        if has_written {
            wal.committed.fetch_add(1, Ordering::SeqCst);
        } else if wal.is_synced() {
            return Durability::reached();
        }
        self.sync(wal)
    }

    /// Requests a sync. Returns the wait until all commits so far are durable.
    pub(super) fn sync(&self, wal: &Arc<Wal>) -> Durability {
        let (done, synced) = oneshot::channel();
        let wal = Arc::clone(wal);
        // If the thread has ended, `done` is dropped and the wait below fails.
        let _thread_has_ended = self.0.send(Job::Sync { wal, done });
        Durability::after(async move {
            let ended = |_| Err(io::Error::other("the sync thread has ended"));
            synced.await.unwrap_or_else(ended)
        })
    }

    /// Drops a connection after its commits are synced, because the last connection of a file
    /// deletes the log.
    pub(super) fn drop_after_sync(&self, connection: impl Send + 'static) {
        // If the thread has ended, the connection is dropped now.
        let _thread_has_ended = self.0.send(Job::Drop(Box::new(connection)));
    }
}

fn run(jobs: &mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut batch = VecDeque::from([first]);
        batch.extend(jobs.try_iter());
        let mut drops = Vec::new();
        let mut waiting: Vec<(Arc<Wal>, Vec<oneshot::Sender<_>>)> = Vec::new();
        for job in batch {
            match job {
                Job::Drop(connection) => drops.push(connection),
                // Usually there is one log; there are two if the writer was reopened meanwhile.
                Job::Sync { wal, done } => match waiting
                    .iter_mut()
                    .find(|(other, _)| Arc::ptr_eq(other, &wal))
                {
                    Some((_, waiting)) => waiting.push(done),
                    None => waiting.push((wal, vec![done])),
                },
            }
        }
        for (wal, waiting) in waiting {
            let synced = wal.sync();
            for done in waiting {
                let result = synced.as_ref().copied().map_err(copy);
                let _receiver_is_gone = done.send(result);
            }
        }
        drop(drops);
    }
}

/// Copies the error of a sync, which is returned to every task that waited for the sync.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
