//! Waking the waiters for a lease on SQLite, with the notifications of the file system.
//!
//! All processes that use a SQLite file are on one host. Each of them has the file `-shm` beside it
//! open as shared memory. A process wakes the others by setting the time stamp of that file, after
//! its commit is visible. The others watch the file's attributes. Nothing else changes them, so
//! ordinary commits wake no process, unlike a watch of the log. And no file is opened: closing it
//! would end the locks that SQLite has on it.
//!
//! This only shortens the wait. Waiters also poll, and on systems other than Linux they only poll.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// The waiters of a lock manager, and what it takes to wake those of other processes.
#[derive(Clone)]
pub(super) struct FileWaiters(Arc<Inner>);

struct Inner {
    shared_memory: Arc<Path>,
    /// Identifies this manager in the time stamps that it sets: a number below [`SENDERS`].
    sender: u32,
    released: Arc<Notify>,
    /// Started by the first task that waits.
    watch: OnceLock<AbortOnDropHandle<()>>,
}

/// The number of different senders. Two managers with the same number do not wake each other.
const SENDERS: u32 = 100_000;

impl FileWaiters {
    /// `database` is the path of the database file.
    pub(super) fn new(database: &Path) -> Self {
        // The file is beside the database file itself, not beside a link to it.
        let database = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
        let mut path = database.into_os_string();
        path.push("-shm");
        Self(Arc::new(Inner {
            shared_memory: PathBuf::from(path).into(),
            sender: fastrand::u32(1..SENDERS),
            released: Arc::default(),
            watch: OnceLock::new(),
        }))
    }

    /// Returns `true` if this system has such notifications.
    pub(super) fn can_wake(&self) -> bool {
        cfg!(target_os = "linux")
    }

    /// Wakes the waiters of all other managers on this file. An error is only logged: waiters also
    /// poll.
    ///
    /// The waiters of this manager are not woken: when this process gives way, its next task waits
    /// for another process to take the lease and to release it again.
    pub(super) fn wake_others(&self) {
        #[cfg(target_os = "linux")]
        if let Err(error) = linux::touch(&self.0.shared_memory, self.0.sender) {
            tracing::debug!(%error, "could not notify the waiters for a lease; they poll");
        }
    }

    /// Returns a future that resolves at the next notification after this call. A notification
    /// between the call and the first poll counts, once the watch has started. It is started by the
    /// first poll.
    pub(super) fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.0);
        let released = Arc::clone(&inner.released).notified_owned();
        async move {
            #[cfg(target_os = "linux")]
            inner.watch.get_or_init(|| {
                let path = Arc::clone(&inner.shared_memory);
                let watch = linux::watch(path, inner.sender, Arc::clone(&inner.released));
                AbortOnDropHandle::new(tokio::spawn(watch))
            });
            released.await;
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
    use rustix::io::Errno;
    use tokio::net::unix::pipe::Receiver;
    use tokio::sync::Notify;
    use tokio::time::sleep;

    use super::SENDERS;

    /// Sets the time stamp of the file to now. Its last digits are the sender.
    pub(super) fn touch(path: &Path, sender: u32) -> io::Result<()> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let nanos = now.subsec_nanos() / SENDERS * SENDERS + sender;
        let seconds = now.as_secs().try_into().unwrap_or(i64::MAX);
        match set_time(path, seconds, nanos.into()) {
            // Only the owner of the file may set such a time. Others may set it to the current
            // time. That wakes the waiters of this process too.
            Err(Errno::PERM | Errno::ACCESS) => Ok(set_time(path, 0, UTIME_NOW)?),
            result => Ok(result?),
        }
    }

    /// Sets both time stamps. If only one is set, the event is that of a read or a write.
    fn set_time(path: &Path, seconds: i64, nanos: rustix::fs::Nsecs) -> rustix::io::Result<()> {
        let now = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        utimensat(CWD, path, &times, AtFlags::empty())
    }

    /// Returns `true` if `sender` was the last to touch the file.
    fn is_touched_by(path: &Path, sender: u32) -> bool {
        let time = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        let since = time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH));
        matches!(since, Ok(Ok(since)) if since.subsec_nanos() % SENDERS == sender)
    }

    /// Watches the file for ever. If that fails, it tries again a second later.
    pub(super) async fn watch(path: Arc<Path>, sender: u32, released: Arc<Notify>) {
        loop {
            if let Err(error) = watch_once(&path, sender, &released).await {
                tracing::debug!(
                    %error,
                    "cannot watch for released leases; waiters poll meanwhile"
                );
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn watch_once(path: &Path, sender: u32, released: &Notify) -> io::Result<()> {
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // The events are read like the data of a pipe. tokio's general type for descriptors is
        // unsafe.
        let watch = events.try_clone()?;
        let events = Receiver::from_owned_fd_unchecked(events)?;
        // The file has a link less when it is deleted, so that is an event too.
        add_watch(&watch, path, WatchFlags::ATTRIB)?;
        // Notifications before this watch were missed.
        released.notify_waiters();
        loop {
            events.readable().await?;
            discard(&events)?;
            // If the file was deleted, there may be another one by now. Otherwise this changes
            // nothing.
            add_watch(&watch, path, WatchFlags::ATTRIB)?;
            if !is_touched_by(path, sender) {
                released.notify_waiters();
            }
        }
    }

    fn discard(events: &Receiver) -> io::Result<()> {
        let mut buffer = [0; 1_024];
        loop {
            match events.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
