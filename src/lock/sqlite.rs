//! Leases in SQLite.

use std::future::pending;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, migrate};
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
use super::statements::sqlite as statements;
use super::store::{
    Attempt, Claim, Exclusion, Found, LeasePool, LeaseRow, LeaseStore, Released, Token,
    spawn_before_closing,
};
use crate::db::{
    self, Access, Identity, Migrations, Patience, Session, SqlitePool, SqliteSession,
    TransactionPool, WholeWriter, is_sqlite_busy,
};

/// Leases in a SQLite file, for processes of one machine. All times are the host's.
pub type SqliteLockManager = LeaseLockManager<SqliteLeases>;

impl SqliteLockManager {
    /// Leases in the file of `pool`. They are taken through its one writer, in the same queue as
    /// requests: several connections of one process would only spin on each other's locks.
    pub fn new(pool: &SqlitePool) -> Self {
        Self::over(pool.leases())
    }
}

impl LeasePool for SqlitePool {
    type Leases = SqliteLeases;

    fn leases(&self) -> SqliteLeases {
        SqliteLeases {
            pool: self.clone(),
            retry_interval: Duration::ZERO,
        }
    }
}

/// The rows of `aggregate_locks` in a SQLite file.
#[derive(Clone)]
pub struct SqliteLeases {
    pool: SqlitePool,
    retry_interval: Duration,
}

impl SqliteLeases {
    /// A reader, which never waits for a writer.
    async fn read(&self, patience: Patience) -> sqlx::Result<SqliteSession> {
        self.pool.session(Access::ReadOnly, patience).await
    }

    async fn try_take(&self, claim: &Claim, patience: Patience) -> sqlx::Result<Attempt> {
        // By a reader first: who waits must not keep others from writing.
        let mut reader = self.read(patience).await?;
        let found = statements::look(reader.connection(), &claim.key, Some(&claim.token)).await?;
        if let Found::Held { wanted } = found {
            return Ok(Attempt::Held { wanted });
        }
        drop(reader);
        let take = sqlx::query(statements::TAKE)
            .bind(&*claim.key)
            .bind(&*claim.owner)
            .bind(claim.token.as_str())
            .bind(statements::millis(claim.ttl));
        let writer = self.pool.writer(patience).await?;
        match writer.run(take).await?.first() {
            Some(row) => Ok(Attempt::Taken {
                fencing_token: row.try_get(0)?,
                taken_over: found == Found::Expired,
            }),
            // Somebody came between.
            None => Ok(Attempt::Held { wanted: false }),
        }
    }

    /// The writer. Waits no longer than one retry interval for another process: nobody else of this
    /// one can write meanwhile.
    async fn writer(&self) -> sqlx::Result<WholeWriter> {
        self.pool
            .writer(Patience::AtMost(self.retry_interval))
            .await
    }
}

/// BUSY, LOCKED, or a connection of our own was not free in time.
fn is_contention(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut) || is_sqlite_busy(error)
}

impl LeaseStore for SqliteLeases {
    type Session = SqliteSession;

    fn database(&self) -> &Identity {
        self.pool.identity()
    }

    async fn take(&self, claim: &Claim, patience: Patience) -> sqlx::Result<Attempt> {
        match self.try_take(claim, patience).await {
            // Nobody can mark a row while the file is busy.
            Err(error) if is_contention(&error) => Ok(Attempt::Held { wanted: true }),
            result => result,
        }
    }

    /// Its transactions see what is there when they begin, and nobody writes until they end.
    fn needs_read_committed(&self) -> bool {
        false
    }

    async fn exclusion(
        db: &mut SqliteConnection,
        key: &str,
        ours: Option<&Token>,
    ) -> sqlx::Result<Exclusion> {
        Ok(match statements::look(db, key, ours).await? {
            Found::Free | Found::Expired => Exclusion::Complete,
            Found::Held { .. } => Exclusion::Held,
        })
    }

    async fn renew(&self, claim: &Claim, stopped: &CancellationToken) -> sqlx::Result<bool> {
        let writer = tokio::select! {
            writer = self.writer() => writer?,
            // The request may have the writer, and be waiting for us to stop.
            () = stopped.cancelled() => return Err(sqlx::Error::PoolTimedOut),
        };
        let renew = sqlx::query(statements::RENEW)
            .bind(&*claim.key)
            .bind(claim.token.as_str())
            .bind(statements::millis(claim.ttl));
        Ok(!writer.run(renew).await?.is_empty())
    }

    async fn release(&self, key: &str, token: &Token) -> sqlx::Result<Released> {
        let release = sqlx::query(statements::RELEASE)
            .bind(key)
            .bind(token.as_str());
        let gone = self.writer().await?.run(release).await?;
        let wanted = gone.first().map(|row| row.try_get(0)).transpose()?;
        Ok(Released::found(wanted))
    }

    async fn release_within(
        db: &mut SqliteConnection,
        key: &str,
        token: &Token,
    ) -> sqlx::Result<Released> {
        statements::release(db, key, token).await
    }

    /// Nobody can be told across processes: who waits polls.
    async fn announce(&self, _key: &str) -> sqlx::Result<()> {
        Ok(())
    }

    async fn want(&self, key: &str) -> sqlx::Result<bool> {
        let want = sqlx::query(statements::WANT).bind(key);
        Ok(!self.writer().await?.run(want).await?.is_empty())
    }

    fn freed(&self, _key: &str) -> impl Future<Output = ()> + Send + 'static {
        pending()
    }

    async fn sweep(&self, grace: Duration) -> sqlx::Result<u64> {
        let sweep = sqlx::query(statements::SWEEP).bind(statements::millis(grace));
        Ok(self.writer().await?.run(sweep).await?.len() as u64)
    }

    async fn list(&self) -> sqlx::Result<Vec<LeaseRow>> {
        statements::list(self.read(Patience::Wait).await?.connection()).await
    }

    async fn free(&self, token: &Token) -> sqlx::Result<bool> {
        let free = sqlx::query(statements::FREE).bind(token.as_str());
        Ok(!self.writer().await?.run(free).await?.is_empty())
    }

    async fn migrate(&self) -> Result<(), db::Error> {
        let mut migrator = migrate!("migrations/leases/sqlite");
        migrator.dangerous_set_table_name("_aggregate_locks_migrations");
        self.pool.migrate(&Migrations::new().sqlite(migrator)).await
    }

    fn set_retry_interval(&mut self, interval: Duration) {
        self.retry_interval = interval;
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        spawn_before_closing(&self.pool, work);
    }
}
