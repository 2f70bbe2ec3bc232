//! Shared sync: one sync of the write-ahead log serves all commits before it.
//!
//! The writer commits as with `synchronous = normal`, that is without a sync, and goes on to the
//! next request. What it has committed is told only after an `fdatasync` of the `-wal` file that
//! began after COMMIT had returned. While one sync runs, the next batch gathers.
//!
//! A descriptor of our own is no danger here: SQLite keeps its locks on the database file and on
//! `-shm`, and none on `-wal`. (On a file with locks, closing any descriptor drops them all.)
//!
//! A sync may find that the log was reset since the commit, and that other frames stand there. That
//! is sound: SQLite resets it only after a checkpoint that has synced the log, copied all of it to
//! the database file and synced that too, which it does at `normal` as it does at `full`.

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

/// The write-ahead log as one connection of the writer finds it. SQLite deletes it only with the
/// last connection, so it stays the same file for as long as that one is open.
#[derive(Debug)]
pub(super) struct Wal {
    place: Arc<Place>,
    file: File,
    id: FileId,
    /// `extra`: the folder is synced with every sync.
    with_folder: bool,
    /// How many commits are to be synced, and how many of them are.
    committed: AtomicU64,
    synced: AtomicU64,
    mark: Mark,
    /// A sync has failed. The kernel reports that once, and may have dropped what it could not
    /// write: a second sync that succeeds would prove nothing.
    failed: AtomicBool,
    /// Of the file: it is to be checked before anybody writes to it. A connection that opens after a
    /// failed sync may have another log object, and the same log.
    in_doubt: Arc<AtomicBool>,
}

impl Wal {
    /// Opens the log, which exists once the connection has read from the file.
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

    /// Syncs the log's name, and what a process that was killed may have left in it: others may
    /// read it from now on.
    pub(super) fn sync_what_was_left(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.place.sync_folder()
    }

    /// Sees to it that COMMIT finds room for what SQLite still keeps in memory: with several
    /// databases, the second one must not find the disk full when the first is committed.
    ///
    /// SQLite writes to the log before COMMIT what exceeds its cache, which is 2 MB unless the same
    /// transaction has set `cache_size` or `cache_spill`. The blocks stay with the log, beyond its end.
    /// What this cannot reserve is room in the `-shm` file, which grows by 32 KiB every 4,096 pages; and
    /// some file systems can reserve nothing.
    ///
    /// # Errors
    ///
    /// There is no room.
    pub(super) fn reserve(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            use rustix::io::Errno;

            const CACHE: u64 = 2_048_000;
            /// Frames have headers, and what is in use when the cache is full comes on top.
            const ROOM: u64 = CACHE + CACHE / 8;

            let end = self.file.metadata()?.len();
            if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) =
                fallocate(&self.file, FallocateFlags::KEEP_SIZE, end, ROOM)
            {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!(
                        "{error}; {ROOM} bytes could not be reserved for the write-ahead log of {}",
                        self.place.database.display()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// A sync of this log has failed, through this object or another, and the file was not checked
    /// since.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.in_doubt.load(Ordering::SeqCst)
    }

    /// Nothing of what was committed is still to be synced.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::SeqCst) == self.committed.load(Ordering::SeqCst)
    }

    /// To be called before COMMIT, by one who keeps everybody else from writing.
    pub(super) fn mark(&self) {
        self.mark.set(&self.file);
    }

    /// Whether marks can be relied on here.
    pub(super) fn is_mark_proved(&self) -> bool {
        self.mark.is_proved()
    }

    /// Whether nothing was written since [`mark`](Self::mark), so that there is nothing to sync.
    pub(super) fn is_unwritten(&self) -> bool {
        self.mark.stands(&self.file)
    }

    fn sync(&self) -> io::Result<()> {
        if self.has_failed() {
            return Err(io::Error::other("an earlier sync of this log has failed"));
        }
        // Read before: a commit that comes meanwhile may not be in it.
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
                "the write-ahead log could not be synced; nothing is written any more until it was \
                 opened anew and checked"
            );
        }
        synced
    }

    fn try_sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.with_folder {
            self.place.sync_folder()?;
        }
        // A log or database that was unlinked or replaced is synced in vain.
        if FileId::at(&self.place.wal).ok() != Some(self.id) {
            self.place.log_was_replaced.store(true, Ordering::SeqCst);
        }
        self.place.check()
    }

    /// After a failed sync of the log: writes it once more from what the kernel still holds, and
    /// syncs that. A page that the kernel has dropped reads as the disk has it; the check of the
    /// whole file that follows finds it. Only for a caller that keeps everybody else from writing.
    pub(super) fn write_anew(&self) -> io::Result<()> {
        let mut from = &self.file;
        let mut to = OpenOptions::new().write(true).open(&self.place.wal)?;
        from.seek(SeekFrom::Start(0))?;
        // By hand: `io::copy` may have the kernel share the blocks, and write nothing.
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

/// The thread that syncs. It ends when this is dropped and all is done.
#[derive(Debug)]
pub(super) struct SharedSync(mpsc::Sender<Job>);

enum Job {
    Sync {
        wal: Arc<Wal>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// To be dropped after the next sync.
    Drop(Box<dyn Send>),
}

impl SharedSync {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel();
        // A thread of its own: other blocking work of the service must not delay answers.
        thread::Builder::new()
            .name("sqlite-sync".into())
            .spawn(move || run(&jobs))?;
        Ok(Self(sender))
    }

    /// To be called after COMMIT has returned, by one who still has the writer: what it ends in is
    /// durable. A transaction that wrote nothing may have read what is not durable yet.
    pub(super) fn committed(&self, wal: &Arc<Wal>, has_written: bool) -> Durability {
        if has_written {
            wal.committed.fetch_add(1, Ordering::SeqCst);
        } else if wal.is_synced() {
            return Durability::reached();
        }
        self.sync(wal)
    }

    /// What it ends in: all that was committed so far is durable.
    pub(super) fn sync(&self, wal: &Arc<Wal>) -> Durability {
        let (done, synced) = oneshot::channel();
        let wal = Arc::clone(wal);
        // Without the thread `done` is dropped, and the answer below is a failure.
        let _ended = self.0.send(Job::Sync { wal, done });
        Durability::after(async move {
            let ended = |_| Err(io::Error::other("the thread that syncs has ended"));
            synced.await.unwrap_or_else(ended)
        })
    }

    /// Drops a connection after what it has committed is synced: the last connection of a file
    /// deletes the log.
    pub(super) fn drop_after_sync(&self, connection: impl Send + 'static) {
        let _dropped_now = self.0.send(Job::Drop(Box::new(connection)));
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
                // One log as a rule; two if the writer was opened anew meanwhile.
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
                let result = synced.as_ref().copied().map_err(same);
                let _nobody_waits = done.send(result);
            }
        }
        drop(drops);
    }
}

/// One failure is told to everybody who waited for that sync.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
