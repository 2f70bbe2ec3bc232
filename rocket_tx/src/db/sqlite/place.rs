//! The paths of the files of a SQLite database, and the check that the paths still lead to the
//! files that were opened.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Identifies the file that a path leads to.
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

/// The paths of the files of a database, and the identity of the database file when it was opened.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) database: PathBuf,
    id: FileId,
    pub(super) wal: PathBuf,
    folder: PathBuf,
    /// The log was moved, deleted or replaced while connections were open. The database must not be
    /// used until all connections are closed.
    pub(super) log_was_replaced: AtomicBool,
}

impl Place {
    /// Returns the place of a database file, which must exist.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        // The log is beside the file itself, not beside a link to it.
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

    /// Checks that the path still leads to the file that was opened. Otherwise writes through an
    /// open connection would be lost with that file.
    ///
    /// # Errors
    ///
    /// The database was moved, deleted or replaced, or its log was.
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
                "{database} was replaced by another file while it was open; restart the service"
            ))),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!(
                    "{database} was moved or deleted while it was open ({error}); put it back, or restart the service"
                ),
            )),
        }
    }

    /// Syncs the folder, so that the names of new files survive a power cut.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        sync_folder(&self.folder)
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    // On other systems a folder cannot be opened, and its entries are durable with their files.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
