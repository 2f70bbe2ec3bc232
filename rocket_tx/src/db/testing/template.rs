//! The template of a database, and its name.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::UNIX_EPOCH;

use sqlx::migrate::Migrator;

#[cfg(feature = "sqlite")]
use super::files;
#[cfg(feature = "postgres")]
use super::server;
use crate::db::{Backend, PoolError};

/// The database from which the database of a test was copied.
#[derive(Debug, Clone)]
pub(crate) enum Template {
    #[cfg(feature = "sqlite")]
    File(files::Template),
    #[cfg(feature = "postgres")]
    Database(server::Template),
}

impl Template {
    pub(super) fn backend(&self) -> Backend {
        match self {
            #[cfg(feature = "sqlite")]
            Self::File(_) => Backend::Sqlite,
            #[cfg(feature = "postgres")]
            Self::Database(_) => Backend::Postgres,
        }
    }

    /// Runs the migrations in the template, unless it is known to have them.
    pub(crate) async fn migrate(&self, migrator: &Arc<Migrator>) -> Result<(), PoolError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::File(template) => template.migrate(migrator).await,
            #[cfg(feature = "postgres")]
            Self::Database(template) => template.migrate(migrator).await,
        }
    }
}

/// Identifies the test program, and its build: templates of an earlier build are dropped.
pub(super) struct Program {
    pub(super) path: u32,
    pub(super) build: u32,
}

pub(super) static PROGRAM: LazyLock<Program> = LazyLock::new(|| {
    let path = std::env::current_exe().unwrap_or_default();
    let metadata = std::fs::metadata(&path).ok();
    let modified = metadata.as_ref().and_then(|file| file.modified().ok());
    let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let build = (modified, metadata.map(|file| file.len()));
    Program {
        path: short(hash(&path)),
        build: short(hash(&build)),
    }
});

/// Identifies a set of migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(pub(super) u64);

impl Fingerprint {
    pub(super) fn of(migrator: &Migrator) -> Self {
        let migrations = migrator.iter();
        let migrations: Vec<_> = migrations.map(|one| (one.version, &one.checksum)).collect();
        Self(hash(&(&migrator.table_name, migrations)))
    }
}

/// Returns the name of the template of a database. `database` identifies the database in the
/// service, `migrations` are those of `db::init`.
pub(super) fn name(database: &impl Hash, migrations: Option<&Arc<Migrator>>) -> String {
    let Program { path, build } = *PROGRAM;
    let key = hash(&(database, migrations.map(|it| Fingerprint::of(it))));
    format!("rocket_tx_template_{path:08x}_{build:08x}_{key:016x}")
}

/// Returns the program and the build in the name of a template, or `None` if it is not one.
pub(super) fn program_of(name: &str) -> Option<Program> {
    let mut parts = name.strip_prefix("rocket_tx_template_")?.split('_');
    let program = Program {
        path: hexadecimal(parts.next()?)?,
        build: hexadecimal(parts.next()?)?,
    };
    let key = parts.next()?;
    let is_key = key.len() == 16 && key.bytes().all(|digit| digit.is_ascii_hexdigit());
    (is_key && parts.next().is_none()).then_some(program)
}

/// Parses eight hexadecimal digits.
pub(super) fn hexadecimal(text: &str) -> Option<u32> {
    let are_digits = text.len() == 8 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    are_digits.then(|| u32::from_str_radix(text, 16).ok())?
}

pub(super) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn short(hash: u64) -> u32 {
    (hash >> 32) as u32 ^ hash as u32
}
