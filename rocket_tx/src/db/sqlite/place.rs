//! Where the files of a SQLite database are, and whether they are still the ones that were opened.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which file a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Self {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        }
        #[cfg(not(unix))]
        {
            let _ = metadata;
            Self {}
        }
    }

    pub(super) fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

/// Where the files of a database are, and which file it was when it was opened.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) database: PathBuf,
    id: FileId,
    pub(super) wal: PathBuf,
    folder: PathBuf,
    /// The log was replaced under open connections: nothing can be trusted until all are closed.
    pub(super) log_was_replaced: AtomicBool,
}

impl Place {
    /// Of a file that exists.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        // The log stands beside the file itself, not beside a link to it.
        let real = fs::canonicalize(database)?;
        let mut wal = real.clone().into_os_string();
        wal.push("-wal");
        Ok(Self {
            database: std::path::absolute(database)?,
            id: FileId::at(&real)?,
            wal: wal.into(),
            folder: real.parent().unwrap_or(Path::new("/")).to_owned(),
            log_was_replaced: AtomicBool::new(false),
        })
    }

    /// Fails if the path no longer leads to the file that was opened: what is written through an
    /// open connection would be gone with the file.
    pub(super) fn check(&self) -> io::Result<()> {
        let database = self.database.display();
        if self.log_was_replaced.load(Ordering::SeqCst) {
            return Err(io::Error::other(format!(
                "the write-ahead log of {database} was moved, deleted or replaced while it was open; \
                 restart the service"
            )));
        }
        match FileId::at(&self.database) {
            Ok(id) if id == self.id => Ok(()),
            Ok(_) => Err(io::Error::other(format!(
                "another file stands at {database} than the one that was opened; restart the service"
            ))),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!(
                    "{database} was moved or deleted while it was open ({error}); put it back, or restart the service"
                ),
            )),
        }
    }

    /// Has the names of new files survive a power cut.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        sync_folder(&self.folder)
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened, and its entries are durable with their files.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
