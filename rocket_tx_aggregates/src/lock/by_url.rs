//! The rows of `aggregate_locks` in the database that a URL names.

use std::time::Duration;

use rocket::futures::future::{BoxFuture, FutureExt};
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
#[cfg(postgres)]
use super::PostgresLeases;
#[cfg(sqlite)]
use super::SqliteLeases;
use super::store::{
    Attempt, Claim, Exclusion, Fence, LeasePool, LeaseRow, LeaseStore, Look, ReleaseOutcome,
    Sealed, Token,
};
use rocket_tx::db::{self, Identity, UrlConnection, UrlPool, WaitPolicy};

/// Matches on the backend, with the same expression for both.
macro_rules! either {
    ($kind:ident, $on:expr, |$inner:ident| $body:expr) => {
        match $on {
            #[cfg(sqlite)]
            $kind::Sqlite($inner) => $body,
            #[cfg(postgres)]
            $kind::Postgres($inner) => $body,
        }
    };
}

/// Leases in a SQLite file or in Postgres, depending on the URL.
pub type UrlLockManager = LeaseLockManager<UrlLeases>;

impl UrlLockManager {
    /// Makes a manager of leases in the database of `pool`.
    pub fn new(pool: &UrlPool) -> Self {
        Self::over(pool.leases())
    }
}

impl LeasePool for UrlPool {
    type Leases = UrlLeases;

    fn leases(&self) -> UrlLeases {
        match self {
            #[cfg(sqlite)]
            Self::Sqlite(pool) => UrlLeases::Sqlite(pool.leases()),
            #[cfg(postgres)]
            Self::Postgres(pool) => UrlLeases::Postgres(pool.leases()),
        }
    }
}

/// The rows of `aggregate_locks` in the database of a [`UrlPool`].
#[derive(Clone)]
pub enum UrlLeases {
    /// In a SQLite file.
    #[cfg(sqlite)]
    Sqlite(SqliteLeases),
    /// In Postgres.
    #[cfg(postgres)]
    Postgres(PostgresLeases),
}

impl Sealed for UrlLeases {}

impl LeaseStore for UrlLeases {
    type Session = UrlConnection;

    fn database(&self) -> &Identity {
        either!(Self, self, |leases| leases.database())
    }

    async fn take(&self, claim: &Claim, wait: WaitPolicy, marks: bool) -> sqlx::Result<Attempt> {
        either!(Self, self, |leases| leases.take(claim, wait, marks).await)
    }

    async fn take_all(&self, claims: &[&Claim], wait: WaitPolicy) -> sqlx::Result<Vec<Attempt>> {
        either!(Self, self, |leases| leases.take_all(claims, wait).await)
    }

    fn needs_read_committed(&self) -> bool {
        either!(Self, self, |leases| leases.needs_read_committed())
    }

    async fn exclusion(
        connection: &mut UrlConnection,
        key: &str,
        ours: Option<&Token>,
    ) -> sqlx::Result<Exclusion> {
        match connection {
            #[cfg(sqlite)]
            UrlConnection::Sqlite(db) => SqliteLeases::exclusion(db, key, ours).await,
            #[cfg(postgres)]
            UrlConnection::Postgres(db) => PostgresLeases::exclusion(db, key, ours).await,
        }
    }

    async fn renew(&self, claim: &Claim, stopped: &CancellationToken) -> sqlx::Result<bool> {
        either!(Self, self, |leases| leases.renew(claim, stopped).await)
    }

    async fn release(&self, key: &str, token: &Token, wakes: bool) -> sqlx::Result<ReleaseOutcome> {
        either!(Self, self, |leases| leases.release(key, token, wakes).await)
    }

    async fn release_within(
        connection: &mut UrlConnection,
        fences: &[&Fence],
    ) -> sqlx::Result<Vec<ReleaseOutcome>> {
        match connection {
            #[cfg(sqlite)]
            UrlConnection::Sqlite(db) => SqliteLeases::release_within(db, fences).await,
            #[cfg(postgres)]
            UrlConnection::Postgres(db) => PostgresLeases::release_within(db, fences).await,
        }
    }

    async fn notify_waiters(&self, key: &str) -> sqlx::Result<()> {
        either!(Self, self, |leases| leases.notify_waiters(key).await)
    }

    async fn want(&self, claim: &Claim) -> sqlx::Result<Look> {
        either!(Self, self, |leases| leases.want(claim).await)
    }

    fn wakes_waiters(&self) -> bool {
        either!(Self, self, |leases| leases.wakes_waiters())
    }

    fn wait_for_release(&self, key: &str) -> impl Future<Output = ()> + Send + 'static {
        let freed: BoxFuture<'static, ()> =
            either!(Self, self, |leases| leases.wait_for_release(key).boxed());
        freed
    }

    async fn sweep(&self, grace: Duration) -> sqlx::Result<u64> {
        either!(Self, self, |leases| leases.sweep(grace).await)
    }

    async fn list(&self) -> sqlx::Result<Vec<LeaseRow>> {
        either!(Self, self, |leases| leases.list().await)
    }

    async fn free(&self, token: &Token) -> sqlx::Result<bool> {
        either!(Self, self, |leases| leases.free(token).await)
    }

    async fn migrate(&self) -> Result<(), db::PoolError> {
        either!(Self, self, |leases| leases.migrate().await)
    }

    fn set_retry_interval(&mut self, interval: Duration) {
        either!(Self, self, |leases| leases.set_retry_interval(interval));
    }

    fn set_max_connections(&mut self, number: u32) {
        either!(Self, self, |leases| leases.set_max_connections(number));
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        either!(Self, self, |leases| leases.spawn(work));
    }
}
