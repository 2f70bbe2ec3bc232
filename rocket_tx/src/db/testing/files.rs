//! Templates and copies on SQLite: files in the folder for temporary files.
//!
//! ```text
//! rocket_tx_testing_1000/                    1000 is the id of the user
//!     rocket_tx_template_….db
//!     3f2a9c01.lock                          locked by a test process as long as it runs
//!     run_3f2a9c01/                          the files of that process
//! ```
//!
//! A process that starts removes what belongs to a lock that it can take itself: the process of that
//! lock has ended. The lock is one of SQLite, which every system releases when a process is killed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::{Mutex, OnceCell};

use super::template::{self, Fingerprint, PROGRAM};
use super::{TestDatabaseError, workshop};
use crate::db::sqlite::SqliteFile;
use crate::db::{OpenError, PoolError};

/// A template that no test program has built for this long is removed.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

/// The folder of this process.
pub(super) struct Folder {
    templates: PathBuf,
    own: PathBuf,
    next: AtomicU32,
    /// The migrations that a template is known to have. The lock is held while a template is built.
    known: Mutex<HashMap<PathBuf, HashSet<Fingerprint>>>,
    _lock: SqliteConnection,
}

#[derive(Clone)]
pub(crate) struct Template {
    folder: Arc<Folder>,
    path: PathBuf,
}

/// A file that belongs to one test. Dropping it removes the file.
pub(super) struct OwnFile {
    folder: PathBuf,
    pub(super) path: PathBuf,
}

impl Folder {
    /// Returns the folder of this process. The first call creates it, and removes those of processes
    /// that were killed.
    pub(super) async fn of_this_process() -> Result<Arc<Self>, TestDatabaseError> {
        static FOLDER: OnceCell<Arc<Folder>> = OnceCell::const_new();

        let open = async || Self::open(root()?).await.map(Arc::new);
        workshop::run(async move { FOLDER.get_or_try_init(open).await.cloned() }).await
    }

    async fn open(root: PathBuf) -> Result<Self, TestDatabaseError> {
        sweep(&root).await;
        loop {
            let run = fastrand::u32(..);
            // The lock comes first: a folder without a lock would be removed.
            let path = root.join(format!("{run:08x}.lock"));
            let lock = match lock(&path).await? {
                Some(lock) => lock,
                None => continue,
            };
            let own = root.join(format!("run_{run:08x}"));
            // Another process may have removed the new file before it was locked. Without the file,
            // nobody would remove the folder later.
            if !path.exists() {
                continue;
            }
            make_folder(&own)?;
            return Ok(Self {
                templates: root,
                own,
                next: AtomicU32::new(0),
                known: Mutex::default(),
                _lock: lock,
            });
        }
    }

    /// Returns the template of a database. `database` identifies the database in the service.
    pub(super) fn template(
        self: Arc<Self>,
        database: &impl Hash,
        migrations: Option<&Arc<Migrator>>,
    ) -> Template {
        let name = template::name(database, migrations);
        Template {
            path: self.templates.join(format!("{name}.db")),
            folder: self,
        }
    }

    fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

impl Template {
    pub(super) async fn migrate(&self, migrator: &Arc<Migrator>) -> Result<(), PoolError> {
        let (template, migrator) = (self.clone(), Arc::clone(migrator));
        workshop::run(async move { template.build(&migrator).await }).await
    }

    /// Runs the migrations in a copy of the template, which then takes the place of the template.
    /// Other processes copy either the old or the new file, and never one that is being written.
    async fn build(&self, migrator: &Migrator) -> Result<(), PoolError> {
        let fingerprint = Fingerprint::of(migrator);
        let mut known = self.folder.known.lock().await;
        let has = known.entry(self.path.clone()).or_default();
        if has.contains(&fingerprint) && self.path.exists() {
            return Ok(());
        }
        let name = format!("building_{}.db", self.folder.number());
        let building = self.folder.own.join(name);
        self.copy_to(&building)?;
        let options = SqliteConnectOptions::new()
            .filename(&building)
            .create_if_missing(true)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Off);
        let file = SqliteFile::new(options, Duration::from_secs(5));
        file.prepare().await?;
        file.migrate(migrator).await?;
        fs::rename(&building, &self.path).map_err(|source| not_written(&self.path, source))?;
        has.insert(fingerprint);
        Ok(())
    }

    /// Copies the template, if there is one.
    fn copy_to(&self, copy: &Path) -> Result<(), OpenError> {
        match fs::copy(&self.path, copy) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(not_written(copy, source))
            }
            // Without migrations there is no template. Opening the database creates the file.
            _ => Ok(()),
        }
    }

    /// Creates a file for one test. `name` is the name of the database in the configuration.
    pub(super) fn create_own(&self, name: &str) -> Result<OwnFile, TestDatabaseError> {
        let folder = self.folder.own.join(self.folder.number().to_string());
        make_folder(&folder)?;
        let own = OwnFile {
            path: folder.join(format!("{name}.db")),
            folder,
        };
        self.copy_to(&own.path).map_err(PoolError::from)?;
        Ok(own)
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // A connection that is closing may create a journal meanwhile.
        const ATTEMPTS: u32 = 20;

        for _ in 0..ATTEMPTS {
            match fs::remove_dir_all(&self.folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
        let folder = self.folder.display();
        tracing::warn!(%folder, "the database of a test could not be removed; a later run removes it");
    }
}

/// Creates the folder of this user, if it does not exist.
fn root() -> Result<PathBuf, TestDatabaseError> {
    #[cfg(unix)]
    let name = format!("rocket_tx_testing_{}", nix::unistd::geteuid());
    #[cfg(not(unix))]
    let name = "rocket_tx_testing";
    let root = std::env::temp_dir().join(name);
    make_folder(&root)?;
    // Another user may have created it, or a link with this name, to receive our files.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let is_ours = fs::symlink_metadata(&root)
            .is_ok_and(|it| it.is_dir() && it.uid() == nix::unistd::geteuid().as_raw());
        if !is_ours {
            let source = io::Error::other("it belongs to another user");
            let folder = root;
            return Err(TestDatabaseError::Folder { folder, source });
        }
    }
    Ok(root)
}

/// Creates a folder that only this user can read, if it does not exist.
fn make_folder(path: &Path) -> Result<(), TestDatabaseError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(path)
        .map_err(|source| TestDatabaseError::Folder {
            folder: path.to_owned(),
            source,
        })
}

fn not_written(path: &Path, source: io::Error) -> OpenError {
    OpenError::Folder {
        folder: path.to_owned(),
        source,
    }
}

/// Takes a lock. Returns `None` if another process has it.
async fn lock(path: &Path) -> sqlx::Result<Option<SqliteConnection>> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .busy_timeout(Duration::ZERO)
        .connect()
        .await?;
    Ok(match connection.execute("BEGIN EXCLUSIVE").await {
        Ok(_) => Some(connection),
        Err(_) => None,
    })
}

/// Removes the files of processes that have ended, and old templates. Whatever cannot be removed
/// remains for a later run.
async fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("lock") if template::hexadecimal(name).is_some() => {
                let Ok(Some(lock)) = lock(&path).await else {
                    continue;
                };
                let run = root.join(format!("run_{name}"));
                let _remains = fs::remove_dir_all(&run);
                // Before the lock is released: then a process that is waiting for the lock sees that
                // the file is gone.
                let is_gone = !run.exists();
                if is_gone {
                    let _remains = fs::remove_file(&path);
                }
                let _closes_anyway = lock.close().await;
                // Windows removes no open file.
                if cfg!(windows) && is_gone {
                    let _remains = fs::remove_file(&path);
                }
            }
            Some("db") if is_old_template(name, &path) => {
                let _remains = fs::remove_file(&path);
            }
            _ => {}
        }
    }
}

fn is_old_template(name: &str, path: &Path) -> bool {
    let Some(program) = template::program_of(name) else {
        return false;
    };
    if program.path == PROGRAM.path {
        return program.build != PROGRAM.build;
    }
    let modified = fs::metadata(path).and_then(|file| file.modified());
    let age = modified.ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > OLD)
}
