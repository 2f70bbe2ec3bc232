//! The interface of a pool from which requests acquire connections.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rocket::figment::Figment;
use rocket_db_pools::Database;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::error_class::may_be_stale;
#[cfg(feature = "postgres")]
use super::health::Health;
#[cfg(feature = "testing")]
use super::testing::Template;
use super::{
    Access, Advice, AtomicDatabase, BeginOptions, NotReady, PoolError, Session, Transaction,
    TransactionControl, WaitPolicy,
};

/// A pool from which requests acquire connections for their transactions and reads.
///
/// Implemented by [`UrlPool`](super::UrlPool), [`SqlitePool`](super::SqlitePool) and
/// [`PostgresPool`](super::PostgresPool). The trait is sealed: no other crate can implement it. A
/// clone is another handle on the same pool.
// The private bound makes the trait sealed.
#[allow(private_bounds)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pool of `rocket_tx`",
    note = "use `rocket_tx::db::SqlitePool`, `rocket_tx::db::PostgresPool` or `rocket_tx::db::UrlPool`"
)]
pub trait TransactionPool:
    AtomicDatabase + rocket_db_pools::Pool<Error = PoolError> + Clone
{
    /// A connection that was acquired from the pool.
    type Session: Session;

    /// Acquires a connection. With [`Access::ReadOnly`] the database itself refuses writes on it.
    ///
    /// # Errors
    ///
    /// [`sqlx::Error::PoolTimedOut`] if no connection became free within `connect_timeout`. With
    /// [`WaitPolicy::FAIL_FAST`] this error is returned without a wait. [`sqlx::Error::PoolClosed`]
    /// after the pool was closed. Any error of opening a new connection.
    fn session(
        &self,
        access: Access,
        wait: WaitPolicy,
    ) -> impl Future<Output = sqlx::Result<Self::Session>> + Send;

    /// Acquires a connection and begins a transaction on it, to write outside a request.
    /// `transaction` of the pools does this too; it also commits, and repeats the work after a
    /// conflict.
    ///
    /// BEGIN detects a pooled session that died while it was idle, or whose server no longer takes
    /// writes. Another session is then acquired, until `connect_timeout` is over.
    ///
    /// # Errors
    ///
    /// The errors of [`session`](Self::session) and of BEGIN. For example, BUSY if another process
    /// keeps a SQLite file locked for longer than `busy_timeout`.
    ///
    /// On SQLite, a request that has a transaction of this database gets an error at once: it would
    /// wait for itself.
    fn open(
        &self,
        options: BeginOptions,
    ) -> impl Future<Output = sqlx::Result<Transaction<Self::Session>>> + Send {
        async move {
            let deadline = Instant::now() + self.connect_timeout();
            loop {
                let session = self.session(options.access, options.wait).await?;
                let is_new = session.is_new();
                match Transaction::begin(session, options).await {
                    Err(error) if !is_new && may_be_stale(&error) && Instant::now() < deadline => {
                        tracing::debug!(%error, "a pooled session no longer works; acquiring another one");
                    }
                    result => return result,
                }
            }
        }
    }

    /// How long a request waits for a connection.
    fn connect_timeout(&self) -> Duration;

    /// Checks whether the database can serve now: it replies and takes writes. For readiness
    /// probes.
    ///
    /// The check uses no connection that requests use, and returns within 1.5 s. It runs at most
    /// once a second; calls in between return the last result. On Postgres it keeps one connection
    /// in addition to `max_connections`. On SQLite it writes a file of 256 KiB in the folder of the
    /// database and removes it.
    ///
    /// # Errors
    ///
    /// [`NotReady`] with the reason.
    fn ready(&self) -> impl Future<Output = Result<(), NotReady>> + Send;

    /// Runs the migrations. Several processes may do so at the same time.
    fn migrate(
        &self,
        migrations: &Migrations,
    ) -> impl Future<Output = Result<(), PoolError>> + Send;

    /// Closes all connections. Unlike [`close`](rocket_db_pools::Pool::close), this does not wait for
    /// requests in flight.
    #[doc(hidden)]
    fn close_connections(&self) -> impl Future<Output = ()> + Send;

    /// Returns the backend that a pool with this URL uses, or `None` if there is none.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    fn backend_of(url: &str) -> Option<Backend>;

    /// Returns the identity of the database. It shows whether two pools use the same database.
    fn identity(&self) -> &Identity;

    /// Returns the identity of the database that `configuration` names, or `None` if it is unknown
    /// before the database is opened.
    ///
    /// With this, a file that two configurations name is detected before it is opened twice. A
    /// SQLite file that is opened under two names has two journals and can become corrupted. See
    /// <https://www.sqlite.org/howtocorrupt.html#_multiple_links_to_the_same_file>.
    fn identity_before_opening(configuration: &Figment) -> Option<Identity> {
        let _ = configuration;
        None
    }

    /// Returns the pool's [`Attachment`]. It is set once, at launch.
    fn attachment(&self) -> &OnceLock<Attachment>;
}

/// A database in which requests can have transactions.
///
/// Implemented for every type with `#[derive(Database)]` over a pool of this library.
pub trait TransactionalDatabase: Database<Pool: TransactionPool> {}

impl<D> TransactionalDatabase for D where D: Database<Pool: TransactionPool> {}

/// The sessions of `D`.
pub(crate) type SessionOf<D> = <<D as Database>::Pool as TransactionPool>::Session;

/// The connection to which a guard of `D` dereferences.
pub(crate) type ConnectionOf<D> = <SessionOf<D> as Session>::Connection;

/// Identifies a database. Two URLs of the same database have equal identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(pub(crate) String);

/// The link from a pool to the service that it is attached to.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The name of the database in the configuration.
    pub(crate) name: &'static str,
    /// The position in the order of attachment. A request that holds a connection of a database
    /// does not wait for a database of a lower rank.
    pub(crate) rank: usize,
    /// The requests, and their hooks after settlement, that have not ended.
    pub(crate) in_flight: TaskTracker,
    /// Warnings to developers.
    pub(crate) advice: Arc<Advice>,
    /// How long closing waits for `in_flight`.
    pub(crate) close_timeout: Duration,
    /// How long the settlement of one request may take. The outcome of a lost COMMIT is queried
    /// within this time. Set when `Settlement` is attached.
    #[cfg(feature = "postgres")]
    pub(crate) settle_timeout: Arc<OnceLock<Duration>>,
    /// Logs whether the database can be reached and takes writes.
    #[cfg(feature = "postgres")]
    pub(crate) health: Arc<Health>,
    /// In a test, the template of the test's database.
    #[cfg(feature = "testing")]
    pub(crate) template: Option<Template>,
}

impl Attachment {
    /// Runs `work` in a task. Closing the pool waits for the task, up to a limit.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.in_flight.spawn(work);
    }

    /// The `settle_timeout` of a pool without a service, or of a service without `Settlement`.
    #[cfg(feature = "postgres")]
    pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

    /// Waits at most `close_timeout` until no request is in flight and all hooks have ended.
    ///
    /// Rocket runs all shutdown fairings at the same time, and rocket_db_pools closes the pool in
    /// one of them. Without this wait, requests in flight would lose their database.
    async fn drained(&self) {
        /// Time for idle client connections to close. Rocket counts the connections right after the
        /// shutdown fairings. If one is left, Rocket sleeps for its whole grace period.
        const IDLE_CLIENTS: Duration = Duration::from_millis(50);

        self.in_flight.close();
        if timeout(self.close_timeout, self.in_flight.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                waited = ?self.close_timeout,
                "requests are still in flight at shutdown; closing the database anyway"
            );
        }
        tokio::time::sleep(IDLE_CLIENTS).await;
    }
}

/// Runs migrations in the template of the database, if the database belongs to a test. Later tests
/// then start with the tables of these migrations.
#[cfg(feature = "testing")]
pub(super) async fn migrate_template(
    attachment: &OnceLock<Attachment>,
    migrator: &Arc<sqlx::migrate::Migrator>,
) -> Result<(), PoolError> {
    match attachment.get().and_then(|it| it.template.as_ref()) {
        Some(template) => template.migrate(migrator).await,
        None => Ok(()),
    }
}

/// Waits for the requests in flight, and then runs `closing`, which closes the pool. `closing` has
/// a time limit, because a leaked connection must not block the exit.
pub(super) async fn close(attachment: &OnceLock<Attachment>, closing: impl Future<Output = ()>) {
    const LIMIT: Duration = Duration::from_secs(2);

    if let Some(attachment) = attachment.get() {
        attachment.drained().await;
    }
    if timeout(LIMIT, closing).await.is_err() {
        tracing::warn!(
            "a connection is still in use at shutdown; the database will roll back its transaction"
        );
    }
}

/// The migrations of one database, for each backend that it may use.
///
/// [`migrate!`](sqlx::migrate!) works only in a package that itself depends on `sqlx`.
///
/// ```
/// # #[cfg(all(feature = "sqlite", feature = "postgres"))] {
/// use rocket_tx::db::Migrations;
///
/// let migrations = Migrations::new()
///     .sqlite(sqlx::migrate!("examples/migrations/notes"))
///     .postgres(sqlx::migrate!("examples/migrations/notes"));
/// # let _ = migrations;
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Migrations {
    #[cfg(feature = "sqlite")]
    pub(super) sqlite: Option<Arc<sqlx::migrate::Migrator>>,
    #[cfg(feature = "postgres")]
    pub(super) postgres: Option<Arc<sqlx::migrate::Migrator>>,
}

/// The system that stores a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A SQLite file.
    #[cfg(feature = "sqlite")]
    Sqlite,
    /// A Postgres database.
    #[cfg(feature = "postgres")]
    Postgres,
}

impl Migrations {
    /// Returns a message for the log if there are migrations for another backend, but none for
    /// `backend`. This is no error: something else may create the tables there.
    pub(super) fn lack(&self, backend: Backend) -> Option<&'static str> {
        #[cfg(all(feature = "sqlite", feature = "postgres"))]
        match (backend, &self.sqlite, &self.postgres) {
            (Backend::Sqlite, None, Some(_)) => Some(
                "the database is SQLite, but its migrations are only for Postgres, so none ran; add \
                 `.sqlite(sqlx::migrate!(..))` to its `Migrations`, unless something else creates \
                 its tables",
            ),
            (Backend::Postgres, Some(_), None) => Some(
                "the database is Postgres, but its migrations are only for SQLite, so none ran; add \
                 `.postgres(sqlx::migrate!(..))` to its `Migrations`, unless something else creates \
                 its tables",
            ),
            _ => None,
        }
        #[cfg(not(all(feature = "sqlite", feature = "postgres")))]
        {
            let _ = backend;
            None
        }
    }

    /// Creates a value without migrations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the migrations to run if the database is SQLite.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(mut self, migrator: sqlx::migrate::Migrator) -> Self {
        self.sqlite = Some(Arc::new(migrator));
        self
    }

    /// Sets the migrations to run if the database is Postgres.
    #[cfg(feature = "postgres")]
    pub fn postgres(mut self, migrator: sqlx::migrate::Migrator) -> Self {
        self.postgres = Some(Arc::new(migrator));
        self
    }
}
