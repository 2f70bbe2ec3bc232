//! SQLite: one writer and several readers per file.
//!
//! SQLite allows only one writer at a time. Requests that queue for one connection and are woken in
//! turn are faster than several connections that poll on BUSY. And one connection needs only one
//! commit hook, which refuses each COMMIT that is not ours, that is, not from this library.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod` | [`SqlitePool`]: opens, checks out sessions, migrates, closes |
//! | `writer` | the connection that writes, and the queue in front of it |
//! | `steps` | the statements that begin and end its transactions |
//! | `holder` | the request that has the open transaction of the writer |
//! | `writer_session` | the writer while one transaction has it checked out |
//! | `watch` | what only SQLite itself can report about the writer's transaction |
//! | `keys` | whether COMMIT would find a broken deferred foreign key |
//! | `mark` | whether a transaction has written to the write-ahead log |
//! | `sync` | one sync of the write-ahead log for all commits before it |
//! | `readers` | the connections that only read |
//! | `place` | the paths of the files, and whether the file was moved, deleted or replaced |
//! | `file` | opens and migrates a file while other processes use it |
//! | `readiness` | whether the file can be written now, checked without the writer |

mod atomic;
mod file;
mod holder;
mod keys;
mod mark;
mod place;
mod readers;
mod readiness;
mod steps;
mod sync;
mod watch;
mod writer;
mod writer_session;
use std::borrow::Cow;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocket::figment::Figment;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _, Sqlite};
use sqlx_core::transaction::TransactionManager;

pub use self::file::is_sqlite_busy;
pub use self::file::sqlite_open_retries;
pub use self::writer_session::OneShotWriter;

pub(super) use self::file::SqliteFile;
use self::holder::{Held, Holder};
use self::place::Place;
use self::readers::Reader;
use self::readiness::Probe;
use self::sync::SharedSync;
use self::writer::{Writer, WriterFile, unreachable};
use self::writer_session::WriterSession;
#[cfg(feature = "testing")]
use crate::db::Backend;
use crate::db::config::{SLOW, Synchronous};
use crate::db::enclosing::is_within;
use crate::db::error_class::waits_for_itself;
use crate::db::{
    Access, Attachment, BeginOptions, CommitError, Config, Decided, Decision, Durability, Ending,
    ExecutorSession, GlobalId, Identity, Migrations, NotReady, PoolError, RollbackError, Session,
    TransactionControl, TransactionId, TransactionPool, WaitPolicy, pool, scheme,
};

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// A SQLite file: one writer and at most `max_connections` readers.
///
/// [`get`](rocket_db_pools::Pool::get), and therefore `Connection<D>`, checks out a reader. To
/// write outside a request, [`open`](TransactionPool::open) a transaction and commit it by
/// [`Transaction::commit`](crate::db::Transaction::commit): the writer refuses a COMMIT that is
/// sent as a statement.
#[derive(Clone)]
pub struct SqlitePool(Arc<Inner>);

struct Inner {
    file: SqliteFile,
    place: Arc<Place>,
    writer: Writer,
    holder: Arc<Holder>,
    readers: sqlx::SqlitePool,
    busy_timeout: Duration,
    identity: Identity,
    attachment: OnceLock<Attachment>,
    probe: Probe,
}

/// A checked-out SQLite connection: the writer or a reader.
pub struct SqliteSession {
    /// Set while a request has its transaction on the writer. Before `connection`, so that it is
    /// dropped before another request gets the writer.
    held: Option<Held>,
    holder: Arc<Holder>,
    connection: Pooled,
    busy_timeout: Duration,
    owner: Option<TransactionId>,
}

enum Pooled {
    Writer(WriterSession),
    Reader(Reader),
}

impl Deref for SqliteSession {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        match &self.connection {
            Pooled::Writer(writer) => writer,
            Pooled::Reader(reader) => reader,
        }
    }
}

impl DerefMut for SqliteSession {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        match &mut self.connection {
            Pooled::Writer(writer) => writer,
            Pooled::Reader(reader) => reader,
        }
    }
}

impl Session for SqliteSession {
    type Connection = SqliteConnection;

    fn connection(&mut self) -> &mut SqliteConnection {
        self
    }

    fn connection_ref(&self) -> &SqliteConnection {
        self
    }

    fn mark_unchanged(&mut self) {
        // The writer is checked in any case, and no request waits for that.
        if let Pooled::Reader(reader) = &mut self.connection {
            reader.mark_unchanged();
        }
    }
}

impl ExecutorSession for SqliteSession {
    type Database = Sqlite;
    type Executor<'c> = &'c mut SqliteConnection;

    fn executor(connection: &mut SqliteConnection) -> &mut SqliteConnection {
        connection
    }
}

impl TransactionControl for SqliteSession {
    fn owner(&mut self) -> &mut Option<TransactionId> {
        &mut self.owner
    }

    async fn begin(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        let busy_timeout = options.wait.busy_timeout_or(self.busy_timeout);
        match &mut self.connection {
            // IMMEDIATE takes the write lock now. A deferred transaction that reads first and
            // writes later can fail with BUSY_SNAPSHOT, and waiting does not help.
            Pooled::Writer(writer) => writer.begin(busy_timeout).await,
            Pooled::Reader(reader) => Manager::begin(reader, None).await,
        }
    }

    /// On the writer, checks that the transaction is still open, that its deferred foreign keys
    /// hold, that the file was not moved, deleted or replaced, and that the disk has space for
    /// COMMIT. SQLite has no aborted transactions.
    async fn prepare(&mut self) -> Result<(), CommitError> {
        match &mut self.connection {
            Pooled::Writer(writer) => writer.prepare().await,
            Pooled::Reader(_) => Ok(()),
        }
    }

    async fn commit(&mut self) -> Result<Durability, CommitError> {
        let reader = match &mut self.connection {
            Pooled::Writer(writer) => return writer.commit().await,
            Pooled::Reader(reader) => reader,
        };
        while reader.is_in_transaction() {
            let committed = Manager::commit(reader).await;
            // Nothing was written, so the outcome cannot be in doubt.
            committed.map_err(CommitError::Refused)?;
        }
        Ok(Durability::reached())
    }

    fn may_have_written(&self) -> bool {
        matches!(self.connection, Pooled::Writer(_))
    }

    async fn prepare_transaction(&mut self, _: &GlobalId) -> Result<(), CommitError> {
        let reason = "SQLite cannot prepare transactions";
        let error = std::io::Error::new(std::io::ErrorKind::Unsupported, reason);
        Err(CommitError::CannotPrepare(error.into()))
    }

    async fn decide(&mut self, decision: &Decision) -> Result<Durability, CommitError> {
        match &mut self.connection {
            Pooled::Writer(writer) => writer.decide(decision).await,
            Pooled::Reader(_) => Err(CommitError::Refused(sqlx::Error::BeginFailed)),
        }
    }

    async fn finish_prepared(&mut self, _: &GlobalId, _: Decided) -> sqlx::Result<()> {
        Ok(())
    }

    async fn rollback(&mut self) -> Result<(), RollbackError> {
        let reader = match &mut self.connection {
            Pooled::Writer(writer) => return writer.rollback().await,
            Pooled::Reader(reader) => reader,
        };
        while reader.is_in_transaction() {
            Manager::rollback(reader).await?;
        }
        Ok(())
    }

    fn hold_for_request(&mut self) {
        if let Pooled::Writer(_) = &self.connection {
            self.held = Some(self.holder.hold());
        }
    }

    fn ending(&self) -> Ending {
        match &self.connection {
            Pooled::Writer(writer) => writer.ending(),
            Pooled::Reader(_) => Ending::by_closing(),
        }
    }

    fn start_rollback(&mut self) {
        match &mut self.connection {
            Pooled::Writer(writer) => writer.start_rollback(),
            Pooled::Reader(reader) => {
                for _ in 0..Manager::get_transaction_depth(reader) {
                    Manager::start_rollback(reader);
                }
            }
        }
    }

    fn close_on_drop(&mut self) {
        match &mut self.connection {
            Pooled::Writer(writer) => writer.close_on_drop(),
            Pooled::Reader(reader) => reader.close_on_drop(),
        }
    }
}

impl SqlitePool {
    pub(super) async fn connect(config: &Config) -> Result<Self, PoolError> {
        let busy_timeout = config.busy_timeout.0;
        let options = connect_options(config)?;
        let filename = options.get_filename().to_owned();
        let file = SqliteFile::new(options.clone(), busy_timeout);
        file.prepare().await?;

        // The file exists now. If it disappears later, a connection must not create another one.
        let options = options.create_if_missing(false);
        let opened = Place::of(&filename).and_then(|place| {
            place.sync_folder()?;
            Ok((Arc::new(place), shared_sync(config.synchronous)?))
        });
        let (place, sync) = opened.map_err(|error| file.explain(error.into()))?;
        let writers = match sync {
            Some(_) => options.clone().synchronous(SqliteSynchronous::Normal),
            None => options.clone(),
        };
        let writer = WriterFile {
            options: writers,
            busy_timeout,
            place,
            sync,
            with_folder: config.synchronous == Synchronous::Extra,
            in_doubt: Arc::default(),
        };
        let place = Arc::clone(&writer.place);
        let writer = Writer::new(writer, config.connect_timeout.0);
        // Open the writer now, so that the launch fails if something is wrong with it.
        let opened = writer.acquire(WaitPolicy::QUEUE).await;
        drop(opened.map_err(|error| file.explain(error))?);
        let readers = readers::connect(config, options)
            .await
            .map_err(|error| file.explain(error))?;
        let identity = identity(&filename);
        let attachment = OnceLock::new();
        Ok(Self(Arc::new(Inner {
            file,
            place,
            writer,
            holder: Arc::default(),
            readers,
            busy_timeout,
            identity,
            attachment,
            probe: Probe::default(),
        })))
    }
}

impl SqlitePool {
    /// Returns the path of the database file.
    pub fn path(&self) -> &Path {
        self.0.file.path()
    }

    /// Waits in the queue for the writer, unless the caller holds it itself.
    async fn acquire_writer(&self, wait: WaitPolicy) -> sqlx::Result<WriterSession> {
        let name = || (self.0.attachment.get()).map_or("the database", |attached| attached.name);
        let may_wait_for_itself = wait.may_wait_for_itself();
        let is_own = may_wait_for_itself && self.0.holder.is_this_task();
        if is_within(&self.0.identity) || is_own {
            return Err(waits_for_itself(name()));
        }
        match self.0.writer.acquire(wait).await {
            Err(sqlx::Error::PoolTimedOut) if may_wait_for_itself && self.0.holder.is_here() => {
                Err(waits_for_itself(name()))
            }
            acquired => acquired,
        }
    }

    /// Waits in the queue for the writer, as a transaction does, and checks it out.
    pub async fn writer(&self, wait: WaitPolicy) -> sqlx::Result<OneShotWriter> {
        let busy_timeout = wait.busy_timeout_or(self.0.busy_timeout);
        let writer = self.0.writer.acquire(wait).await?;
        Ok(OneShotWriter::new(writer, busy_timeout))
    }
}

/// Starts the thread that syncs instead of SQLite. Returns `None` if commits need not survive a
/// power cut.
fn shared_sync(synchronous: Synchronous) -> io::Result<Option<SharedSync>> {
    match synchronous {
        Synchronous::Off | Synchronous::Normal => Ok(None),
        Synchronous::Full | Synchronous::Extra => SharedSync::start().map(Some),
    }
}

fn level(synchronous: Synchronous) -> SqliteSynchronous {
    match synchronous {
        Synchronous::Off => SqliteSynchronous::Off,
        Synchronous::Normal => SqliteSynchronous::Normal,
        Synchronous::Full => SqliteSynchronous::Full,
        Synchronous::Extra => SqliteSynchronous::Extra,
    }
}

/// How many commands a connection's queue can hold: in practice, any number. The queue uses memory
/// only for the commands in it.
///
/// If the queue were full, sqlx would block the thread that queues a rollback or closes the
/// connection, also in the drop of a sqlx `Transaction`. A handler that abandons many statements
/// would then block requests that do not use this database.
const QUEUE: usize = isize::MAX.unsigned_abs();

fn connect_options(config: &Config) -> Result<SqliteConnectOptions, PoolError> {
    let url = |reason: String, advice| PoolError::Url { reason, advice };
    let options = SqliteConnectOptions::from_str(&url_of_file(&config.url)?)
        .map_err(|error| url(error.to_string(), "write it as sqlite:path/to/file.db"))?;
    let parameters = config.url.split_once('?').map_or("", |(_, after)| after);
    let has = |wanted: &[&str]| parameters.split('&').any(|one| wanted.contains(&one));
    if config.url.contains(":memory:") || has(&["mode=memory"]) {
        return Err(url(
            "an in-memory database is private to one connection, but this pool opens several"
                .into(),
            "use a file; in tests, one in a temporary folder",
        ));
    }
    // SQLite opens an empty name as a temporary database, private to each connection.
    if options.get_filename().as_os_str().is_empty() {
        return Err(url(
            "it names no file".into(),
            "write it as sqlite:path/to/file.db",
        ));
    }
    if has(&["cache=shared"]) {
        return Err(url(
            "with `cache=shared` readers wait for the writer, and may read uncommitted changes"
                .into(),
            "leave it out",
        ));
    }
    if has(&["mode=ro", "immutable=1", "immutable=true"]) {
        return Err(url(
            "`mode=ro` and `immutable` open the file for reading only, but this pool also writes"
                .into(),
            "leave them out",
        ));
    }
    Ok(options
        .create_if_missing(true)
        .busy_timeout(config.busy_timeout.0)
        .command_buffer_size(QUEUE)
        .foreign_keys(true)
        .log_slow_statements(log::LevelFilter::Debug, SLOW)
        // Except on the writer, SQLite itself syncs. This matters above all for migrations.
        .synchronous(level(config.synchronous)))
}

/// Returns the URL with its scheme in lower case, as the driver expects it. The driver takes a URL
/// with any other scheme for a path, and would create that file.
///
/// # Errors
///
/// The URL has a scheme that is not `sqlite`. The URL may contain a password, so the error repeats
/// only its scheme.
fn url_of_file(url: &str) -> Result<Cow<'_, str>, PoolError> {
    match scheme::split(url) {
        None => Ok(url.into()),
        Some((scheme, rest)) if scheme == "sqlite" => Ok(format!("sqlite:{rest}").into()),
        Some((scheme, _)) => Err(PoolError::Url {
            reason: format!("`{scheme}:` is not a scheme of `SqlitePool`"),
            advice: "write sqlite:path/to/file.db for a file; for a Postgres database, declare \
                     the database with `PostgresPool` or `UrlPool`",
        }),
    }
}

/// Identifies a file by device and inode where the system has them. A link to the file then has the
/// same identity.
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

    async fn session(&self, access: Access, wait: WaitPolicy) -> sqlx::Result<SqliteSession> {
        let connection = match access {
            Access::ReadOnly => {
                self.0.place.check().map_err(unreachable)?;
                Pooled::Reader(readers::acquire(&self.0.readers, wait).await?)
            }
            Access::ReadWrite => Pooled::Writer(self.acquire_writer(wait).await?),
        };
        Ok(SqliteSession {
            held: None,
            holder: Arc::clone(&self.0.holder),
            connection,
            busy_timeout: self.0.busy_timeout,
            owner: None,
        })
    }

    fn connect_timeout(&self) -> Duration {
        self.0.writer.connect_timeout()
    }

    async fn ready(&self) -> Result<(), NotReady> {
        self.0.probe.ready(self.0.file.path()).await
    }

    async fn migrate(&self, migrations: &Migrations) -> Result<(), PoolError> {
        match &migrations.sqlite {
            Some(migrator) => {
                #[cfg(feature = "testing")]
                pool::migrate_template(&self.0.attachment, migrator).await?;
                self.0.file.migrate(migrator).await
            }
            None => Ok(()),
        }
    }

    async fn close_connections(&self) {
        self.0.readers.close().await;
        self.0.writer.close().await;
    }

    #[cfg(feature = "testing")]
    fn backend_of(url: &str) -> Option<Backend> {
        url_of_file(url).is_ok().then_some(Backend::Sqlite)
    }

    fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn identity_before_opening(configuration: &Figment) -> Option<Identity> {
        let url: String = configuration.extract_inner("url").ok()?;
        let options = SqliteConnectOptions::from_str(&url_of_file(&url).ok()?).ok()?;
        let file = options.get_filename();
        file.exists().then(|| identity(file))
    }

    fn attachment(&self) -> &OnceLock<Attachment> {
        &self.0.attachment
    }
}

#[rocket::async_trait]
impl rocket_db_pools::Pool for SqlitePool {
    type Connection = SqliteSession;
    type Error = PoolError;

    async fn init(figment: &Figment) -> Result<Self, PoolError> {
        Self::connect(&figment.extract()?).await
    }

    async fn get(&self) -> Result<SqliteSession, PoolError> {
        Ok(self.session(Access::ReadOnly, WaitPolicy::QUEUE).await?)
    }

    async fn close(&self) {
        pool::close(&self.0.attachment, self.close_connections()).await;
    }
}
