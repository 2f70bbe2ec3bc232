//! What a pool must offer so that requests can borrow from it.

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
use super::{
    Access, BeginOptions, Error, NotReady, Session, Transaction, TransactionControl, WaitPolicy,
};

/// Seals [`TransactionPool`]: settlement relies on what these pools promise of their sessions.
pub(super) trait Sealed {}

/// A pool that request-scoped transactions and reads are lent from.
///
/// Implemented by [`UrlPool`](super::UrlPool), [`SqlitePool`](super::SqlitePool) and
/// [`PostgresPool`](super::PostgresPool), and sealed: no other crate can implement it. A clone is
/// another handle on the same pool.
// Other crates cannot implement a private bound.
#[allow(private_bounds)]
pub trait TransactionPool: Sealed + rocket_db_pools::Pool<Error = Error> + Clone {
    /// A borrowed connection.
    type Session: Session;

    /// Borrows a connection. One that is [`Access::ReadOnly`] is kept from writing by the database
    /// itself.
    ///
    /// # Errors
    ///
    /// [`sqlx::Error::PoolTimedOut`] when none was free within `connect_timeout`, or at once with
    /// [`WaitPolicy::FAIL_FAST`].
    fn session(
        &self,
        access: Access,
        wait: WaitPolicy,
    ) -> impl Future<Output = sqlx::Result<Self::Session>> + Send;

    /// Borrows a connection and begins a transaction on it. The way to write outside a request.
    ///
    /// A pooled session that has died meanwhile is noticed by BEGIN, and the next one is taken.
    ///
    /// # Errors
    ///
    /// As [`session`](Self::session), and whatever BEGIN meets: BUSY when another process keeps a
    /// SQLite file locked for longer than `busy_timeout`.
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
                        tracing::debug!(%error, "a pooled session was of no use any more; taking another");
                    }
                    result => return result,
                }
            }
        }
    }

    /// How long a request waits for a connection.
    fn connect_timeout(&self) -> Duration;

    /// Whether the database can serve now: it answers, and takes writes. Asked beside the connections
    /// of requests, and at most once a second, however often this is called; answered within 1.5 s.
    /// For readiness probes.
    ///
    /// Postgres keeps one connection more for it, beside `max_connections`. On SQLite a file of 256
    /// KiB is written in the database's folder, and removed.
    ///
    /// # Errors
    ///
    /// [`NotReady`] says why not.
    fn ready(&self) -> impl Future<Output = Result<(), NotReady>> + Send;

    /// Brings the schema up to date. Safe to run from many processes at once.
    fn migrate(&self, migrations: &Migrations) -> impl Future<Output = Result<(), Error>> + Send;

    /// Which database this is, so that two pools of the same one are noticed.
    fn identity(&self) -> &Identity;

    /// Which database this configuration leads to, where that can be told without opening it: a
    /// SQLite file that is open under two names, each with a journal of its own, gets corrupted.
    /// <https://www.sqlite.org/howtocorrupt.html#_multiple_links_to_the_same_file>
    fn identity_before_opening(configuration: &Figment) -> Option<Identity> {
        let _ = configuration;
        None
    }

    /// What ties the pool to the service that uses it; set once, at launch.
    fn attachment(&self) -> &OnceLock<Attachment>;
}

/// A database that requests can have transactions of: any that is made of one of this library's pools
/// by `#[derive(Database)]`.
pub trait TransactionalDatabase: Database<Pool: TransactionPool> {}

impl<D> TransactionalDatabase for D where D: Database<Pool: TransactionPool> {}

/// Tells two databases apart, however their URLs are spelt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(pub(crate) String);

/// A pool's place in its service.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The order of attachment: requests that want two databases take the lower one first.
    pub(crate) rank: usize,
    /// Requests and hooks that are still under way.
    pub(crate) in_flight: TaskTracker,
    /// How long closing waits for them.
    pub(crate) close_timeout: Duration,
    /// How long one request may take to be settled: a lost COMMIT is asked about within it. Known
    /// once `Settlement` is attached.
    #[cfg(feature = "postgres")]
    pub(crate) settle_timeout: Arc<OnceLock<Duration>>,
    /// Whether the database can be reached.
    #[cfg(feature = "postgres")]
    pub(crate) health: Arc<Health>,
}

impl Attachment {
    /// Runs `work` in a task that the pool's closing waits for, bounded.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.in_flight.spawn(work);
    }

    /// What counts for a pool that is in no service.
    #[cfg(feature = "postgres")]
    pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

    /// Waits, bounded, until no request is in flight and the hooks are drained.
    ///
    /// Rocket runs all shutdown fairings at once, and rocket_db_pools closes in one: without this,
    /// requests in flight would lose their database in the middle.
    async fn drained(&self) {
        /// Rocket counts connections right after the shutdown fairings, and sleeps through all of
        /// its grace if one is left. Idle ones take a moment to close.
        const CLOSING: Duration = Duration::from_millis(50);

        self.in_flight.close();
        if timeout(self.close_timeout, self.in_flight.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                waited = ?self.close_timeout,
                "requests are still in flight at shutdown; closing the database all the same"
            );
        }
        tokio::time::sleep(CLOSING).await;
    }
}

/// Waits for requests in flight, then closes, bounded: a leaked connection must not block the exit.
pub(super) async fn close(attachment: &OnceLock<Attachment>, closing: impl Future<Output = ()>) {
    const LEAKED: Duration = Duration::from_secs(2);

    if let Some(attachment) = attachment.get() {
        attachment.drained().await;
    }
    if timeout(LEAKED, closing).await.is_err() {
        tracing::warn!(
            "a connection is still lent at shutdown; leaving it to the database to roll back"
        );
    }
}

/// The migrations of one database, for each backend that it may live on.
///
/// ```
/// # #[cfg(all(feature = "sqlite", feature = "postgres"))] {
/// use rocket_tx::db::Migrations;
/// use rocket_tx::sqlx::migrate;
///
/// let migrations = Migrations::new()
///     .sqlite(migrate!("examples/migrations/notes"))
///     .postgres(migrate!("examples/migrations/notes"));
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

impl Migrations {
    /// No migrations for either backend.
    pub fn new() -> Self {
        Self::default()
    }

    /// Migrations to run when the database is SQLite.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(mut self, migrator: sqlx::migrate::Migrator) -> Self {
        self.sqlite = Some(Arc::new(migrator));
        self
    }

    /// Migrations to run when the database is Postgres.
    #[cfg(feature = "postgres")]
    pub fn postgres(mut self, migrator: sqlx::migrate::Migrator) -> Self {
        self.postgres = Some(Arc::new(migrator));
        self
    }
}
