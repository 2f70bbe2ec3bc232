//! SQLite: one writer and several readers per file.
//!
//! SQLite has one writer at a time anyway. Letting requests queue for one connection, with real
//! wake-ups, beats several connections that spin on BUSY; and one writer can carry a commit hook.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rocket::figment::Figment;
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{Connection as _, Executor, SqlSafeStr, Sqlite};
use sqlx_core::transaction::TransactionManager;

use super::config::Synchronous;
use super::sqlite_file::SqliteFile;
use super::sqlite_watch::Watch;
use super::{
    Access, BeginOptions, CommitError, Config, Error, Identity, Link, Migrations, Patience,
    Session, TransactionPool, pool,
};

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// A SQLite file: one writer, `max_connections` readers.
///
/// [`get`](rocket_db_pools::Pool::get), and with it `Connection<D>`, lends a reader. To write
/// outside a request, [`open`](TransactionPool::open) a transaction: the writer refuses every
/// commit that did not come through [`Transaction::commit`](super::Transaction::commit).
#[derive(Clone)]
pub struct SqlitePool(Arc<Inner>);

struct Inner {
    file: SqliteFile,
    writer: sqlx::SqlitePool,
    readers: sqlx::SqlitePool,
    /// That of the writer connection that is open now; a new connection brings a new one.
    watch: Arc<Mutex<Arc<Watch>>>,
    busy_timeout: Duration,
    identity: Identity,
    link: OnceLock<Link>,
}

/// A borrowed SQLite connection: the writer, or a reader.
pub struct SqliteSession {
    connection: PoolConnection<Sqlite>,
    /// Present on the writer.
    watch: Option<Arc<Watch>>,
    busy_timeout: Duration,
}

impl Deref for SqliteSession {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for SqliteSession {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Session for SqliteSession {
    type Connection = SqliteConnection;

    fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    fn connection_ref(&self) -> &SqliteConnection {
        &self.connection
    }

    async fn begin(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        // IMMEDIATE takes the write lock now: a deferred transaction that reads first and writes
        // later fails with BUSY_SNAPSHOT, and no waiting helps.
        let statement = match self.watch {
            Some(_) => "BEGIN IMMEDIATE",
            None => "BEGIN",
        };
        let begin = statement.into_sql_str();
        match options.patience {
            Patience::Wait => Manager::begin(&mut self.connection, Some(begin)).await?,
            // Another process may hold the file's write lock and wait for what we hold.
            Patience::Never => {
                set_busy_timeout(&mut self.connection, Duration::ZERO).await?;
                let begun = Manager::begin(&mut self.connection, Some(begin)).await;
                set_busy_timeout(&mut self.connection, self.busy_timeout).await?;
                begun?;
            }
        }
        if let Some(watch) = &self.watch {
            watch.begun();
        }
        Ok(())
    }

    /// SQLite has no aborted transactions. It is asked only whether the transaction still stands,
    /// and whether its deferred foreign keys hold.
    async fn prepare(&mut self) -> Result<(), CommitError> {
        let Some(watch) = &self.watch else {
            return Ok(());
        };
        if watch.has_ended() {
            return Err(CommitError::Ended { undone: true });
        }
        match watch.is_constraint_broken(&mut self.connection).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(CommitError::ConstraintBroken),
            Err(error) => Err(CommitError::Refused(error)),
        }
    }

    async fn commit(&mut self) -> Result<(), CommitError> {
        if let Some(watch) = &self.watch {
            if watch.has_ended() {
                return Err(CommitError::Ended { undone: true });
            }
            watch.allow_commit(true);
        }
        // More than once if a handler forgot a savepoint: sqlx releases one at a time.
        let mut result = Ok(());
        while result.is_ok() && self.connection.is_in_transaction() {
            result = Manager::commit(&mut self.connection).await;
        }
        if let (Err(sqlx::Error::Database(_)), Some(watch)) = (&result, &self.watch) {
            watch.allow_commit(false);
        }
        result.map_err(|error| match error {
            sqlx::Error::Database(_) => CommitError::Refused(error),
            _ => CommitError::Unknown(error),
        })
    }

    async fn rollback(&mut self) -> sqlx::Result<()> {
        let ended = self.watch.as_ref().is_some_and(|watch| watch.has_ended());
        match Manager::rollback(&mut self.connection).await {
            // SQLite has nothing left to roll back. sqlx still counts the transaction, so the
            // pool's check after release closes the connection.
            Err(sqlx::Error::Database(_)) if ended => Ok(()),
            result => result,
        }
    }

    fn start_rollback(&mut self) {
        Manager::start_rollback(&mut self.connection);
    }

    fn close_on_drop(&mut self) {
        self.connection.close_on_drop();
    }
}

async fn set_busy_timeout(
    connection: &mut SqliteConnection,
    timeout: Duration,
) -> sqlx::Result<()> {
    let pragma = format!("PRAGMA busy_timeout = {}", timeout.as_millis());
    connection.execute(sqlx::AssertSqlSafe(pragma)).await?;
    Ok(())
}

impl SqlitePool {
    pub(super) async fn connect(config: &Config) -> Result<Self, Error> {
        let busy_timeout = config.busy_timeout.0;
        let options = connect_options(config)?;
        let file = SqliteFile::new(options.clone(), busy_timeout);
        file.prepare().await?;

        let watch = Arc::new(Mutex::new(Arc::new(Watch::default())));
        let current = Arc::clone(&watch);
        let writer = pool_options(config)
            .max_connections(1)
            .min_connections(1)
            .after_connect(move |connection, _| {
                let watch = Arc::new(Watch::default());
                *current.lock() = Arc::clone(&watch);
                Box::pin(watch.install(connection))
            })
            .connect_with(options.clone())
            .await
            .map_err(|error| file.explain(error))?;
        let readers = pool_options(config)
            .max_connections(config.max_connections.max(1))
            .min_connections(config.min_connections)
            // `query_only` holds even where the process may write the file; `read_only` would
            // keep a reader from making the shared-memory file after the last writer left.
            .connect_with(options.pragma("query_only", "ON"))
            .await
            .map_err(|error| file.explain(error))?;
        let identity = identity(writer.connect_options().get_filename());
        let link = OnceLock::new();
        Ok(Self(Arc::new(Inner {
            file,
            writer,
            readers,
            watch,
            busy_timeout,
            identity,
            link,
        })))
    }
}

fn connect_options(config: &Config) -> Result<SqliteConnectOptions, Error> {
    let url = |reason: String, advice| Error::Url { reason, advice };
    let options = SqliteConnectOptions::from_str(&config.url)
        .map_err(|error| url(error.to_string(), "write it as sqlite:path/to/file.db"))?;
    let parameters = config.url.split_once('?').map_or("", |(_, after)| after);
    let has = |wanted: &[&str]| parameters.split('&').any(|one| wanted.contains(&one));
    if config.url.contains(":memory:") || has(&["mode=memory"]) {
        return Err(url(
            "an in-memory database is private to one connection, and there are a writer and readers here".into(),
            "use a file; in tests, one in a temporary folder",
        ));
    }
    // SQLite takes it for a temporary database, of each connection's own.
    if options.get_filename().as_os_str().is_empty() {
        return Err(url(
            "it names no file".into(),
            "write it as sqlite:path/to/file.db",
        ));
    }
    if has(&["mode=ro", "immutable=1", "immutable=true"]) {
        return Err(url(
            "`mode=ro` and `immutable` open the file for reading only, and there is a writer here"
                .into(),
            "leave them out",
        ));
    }
    Ok(options
        .create_if_missing(true)
        .busy_timeout(config.busy_timeout.0)
        .foreign_keys(true)
        .synchronous(match config.synchronous {
            Synchronous::Off => SqliteSynchronous::Off,
            Synchronous::Normal => SqliteSynchronous::Normal,
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Extra => SqliteSynchronous::Extra,
        }))
}

fn pool_options(config: &Config) -> PoolOptions<Sqlite> {
    PoolOptions::new()
        .acquire_timeout(config.connect_timeout.0)
        .idle_timeout(config.idle_timeout.map(|timeout| timeout.0))
        .max_lifetime(None)
        // The other end is a thread of this process: a ping proves nothing and costs a hop.
        .test_before_acquire(false)
        .after_release(|connection: &mut SqliteConnection, _| {
            Box::pin(async move {
                if connection.is_in_transaction() {
                    // A rollback may be queued; it is done when the ping is answered.
                    connection.ping().await?;
                }
                Ok(!connection.is_in_transaction())
            })
        })
}

/// By device and inode where there are such, so that links are seen through.
fn identity(file: &Path) -> Identity {
    #[cfg(unix)]
    if let Ok(metadata) = std::fs::metadata(file) {
        use std::os::unix::fs::MetadataExt;
        return Identity(format!("sqlite:{}:{}", metadata.dev(), metadata.ino()));
    }
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    Identity(format!("sqlite:{}", file.display()))
}

impl TransactionPool for SqlitePool {
    type Session = SqliteSession;

    async fn session(&self, access: Access, patience: Patience) -> sqlx::Result<SqliteSession> {
        let pool = match access {
            Access::ReadOnly => &self.0.readers,
            Access::ReadWrite => &self.0.writer,
        };
        let connection = pool::acquire(pool, patience).await?;
        let watch = match access {
            Access::ReadOnly => None,
            Access::ReadWrite => Some(Arc::clone(&self.0.watch.lock())),
        };
        Ok(SqliteSession {
            connection,
            watch,
            busy_timeout: self.0.busy_timeout,
        })
    }

    async fn migrate(&self, migrations: &Migrations) -> Result<(), Error> {
        match &migrations.sqlite {
            Some(migrator) => self.0.file.migrate(migrator).await,
            None => Ok(()),
        }
    }

    fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn identity_before_opening(configuration: &Figment) -> Option<Identity> {
        let url: String = configuration.extract_inner("url").ok()?;
        let options = SqliteConnectOptions::from_str(&url).ok()?;
        let file = options.get_filename();
        file.exists().then(|| identity(file))
    }

    fn link(&self) -> &OnceLock<Link> {
        &self.0.link
    }
}

#[rocket::async_trait]
impl rocket_db_pools::Pool for SqlitePool {
    type Connection = SqliteSession;
    type Error = Error;

    async fn init(figment: &Figment) -> Result<Self, Error> {
        Self::connect(&figment.extract()?).await
    }

    async fn get(&self) -> Result<SqliteSession, Error> {
        Ok(self.session(Access::ReadOnly, Patience::Wait).await?)
    }

    async fn close(&self) {
        pool::close(&self.0.link, async {
            self.0.readers.close().await;
            self.0.writer.close().await;
        })
        .await;
    }
}
