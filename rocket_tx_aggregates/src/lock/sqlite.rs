//! Leases in SQLite.

use std::future::pending;
use std::time::Duration;

use rocket_tx::db::{
    self, Access, Identity, Migrations, Session, SqlitePool, SqliteSession, TransactionPool,
    WaitPolicy,
};
use rocket_tx::extend::{OneShotWriter, is_sqlite_busy};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, migrate};
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
use super::sql::statement;
use super::store::{
    Attempt, Claim, Exclusion, Fence, LeasePool, LeaseRow, LeaseStore, ReleaseOutcome, Sealed,
    Token, millis, outcomes_of, parameter_of, spawn_before_closing,
};

/// Makes leases in a SQLite file, for the processes of one machine. All times are those of the
/// machine's clock.
pub type SqliteLockManager = LeaseLockManager<SqliteLeases>;

impl SqliteLockManager {
    /// Makes a manager of leases in the file of `pool`. Lease statements that write use the pool's
    /// only writer, in the same queue as requests. Several writing connections of one process would
    /// only poll for each other's locks.
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
    /// Returns a reader, which never waits for a writer.
    async fn read(&self, wait: WaitPolicy) -> sqlx::Result<SqliteSession> {
        self.pool.session(Access::ReadOnly, wait).await
    }

    async fn try_take(&self, claim: &Claim, wait: WaitPolicy) -> sqlx::Result<Attempt> {
        // Check with a reader first, so that a waiter does not keep others from writing.
        let mut reader = self.read(wait).await?;
        let found = row_state(reader.connection(), &claim.key, Some(&claim.token)).await?;
        if let RowState::Held { wanted } = found {
            return Ok(Attempt::Held { wanted });
        }
        drop(reader);
        let take = sqlx::query(statement(include_str!("sql/sqlite/take.sql")))
            .bind(&*claim.key)
            .bind(&*claim.owner)
            .bind(claim.token.as_str())
            .bind(millis(claim.ttl));
        let writer = self.pool.writer(wait).await?;
        match writer.run(take).await?.first() {
            Some(row) => Ok(Attempt::Taken {
                fencing_token: row.try_get(0)?,
                taken_over: found == RowState::Expired,
            }),
            // Another process took the lease after the check.
            None => Ok(Attempt::Held { wanted: false }),
        }
    }

    /// Returns the writer. While its statement waits for a lock of another process, no other task
    /// of this process can write. So this wait is limited to one retry interval.
    async fn writer(&self) -> sqlx::Result<OneShotWriter> {
        self.pool
            .writer(WaitPolicy::QUEUE.busy_timeout(self.retry_interval))
            .await
    }
}

const RELEASE: &str = include_str!("sql/release.sql");

/// The state of a key's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowState {
    /// There is no row, or the row is ours.
    Free,
    /// The row of another holder, which has expired.
    Expired,
    /// The live row of another holder. `wanted`: it is marked as wanted.
    Held { wanted: bool },
}

/// Returns the state of the row of `key`. A row with the token `ours` counts as free.
async fn row_state(
    db: &mut SqliteConnection,
    key: &str,
    ours: Option<&Token>,
) -> sqlx::Result<RowState> {
    let row: Option<(bool, bool)> = sqlx::query_as(statement(include_str!("sql/sqlite/look.sql")))
        .bind(key)
        .bind(ours.map_or("", Token::as_str))
        .fetch_optional(db)
        .await?;
    Ok(match row {
        None => RowState::Free,
        Some((false, _)) => RowState::Expired,
        Some((true, wanted)) => RowState::Held { wanted },
    })
}

/// Returns `true` for BUSY, for LOCKED, and if no connection of the pool was free in time.
fn is_contention(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut) || is_sqlite_busy(error)
}

impl Sealed for SqliteLeases {}

impl LeaseStore for SqliteLeases {
    type Session = SqliteSession;

    fn database(&self) -> &Identity {
        self.pool.identity()
    }

    async fn take(&self, claim: &Claim, wait: WaitPolicy) -> sqlx::Result<Attempt> {
        match self.try_take(claim, wait).await {
            // `wanted: true` skips the marking of the row: while the file is busy, the mark could
            // not be written either.
            Err(error) if is_contention(&error) => Ok(Attempt::Held { wanted: true }),
            result => result,
        }
    }

    /// Returns `false`: no other process writes during a write transaction, so its snapshot stays
    /// current.
    fn needs_read_committed(&self) -> bool {
        false
    }

    async fn exclusion(
        db: &mut SqliteConnection,
        key: &str,
        ours: Option<&Token>,
    ) -> sqlx::Result<Exclusion> {
        Ok(match row_state(db, key, ours).await? {
            RowState::Free | RowState::Expired => Exclusion::Complete,
            RowState::Held { .. } => Exclusion::Held,
        })
    }

    async fn renew(&self, claim: &Claim, stopped: &CancellationToken) -> sqlx::Result<bool> {
        let writer = tokio::select! {
            writer = self.writer() => writer?,
            // The request may hold the writer while it waits for this renewal to stop.
            () = stopped.cancelled() => return Err(sqlx::Error::PoolTimedOut),
        };
        let renew = sqlx::query(statement(include_str!("sql/sqlite/renew.sql")))
            .bind(&*claim.key)
            .bind(claim.token.as_str())
            .bind(millis(claim.ttl));
        Ok(!writer.run(renew).await?.is_empty())
    }

    async fn release(&self, key: &str, token: &Token) -> sqlx::Result<ReleaseOutcome> {
        let release = sqlx::query(statement(RELEASE))
            .bind(key)
            .bind(token.as_str());
        let gone = self.writer().await?.run(release).await?;
        let wanted = gone.first().map(|row| row.try_get(0)).transpose()?;
        Ok(ReleaseOutcome::found(wanted))
    }

    async fn release_within(
        db: &mut SqliteConnection,
        fences: &[&Fence],
    ) -> sqlx::Result<Vec<ReleaseOutcome>> {
        match fences {
            [] => Ok(Vec::new()),
            [fence] => {
                let release = sqlx::query_scalar(statement(RELEASE))
                    .bind(&*fence.key)
                    .bind(fence.token.as_str());
                let wanted = release.fetch_optional(db).await?;
                Ok(vec![ReleaseOutcome::found(wanted)])
            }
            fences => {
                const SQL: &str = include_str!("sql/sqlite/release_all.sql");

                let release = sqlx::query_as(statement(SQL)).bind(parameter_of(fences));
                Ok(outcomes_of(fences, release.fetch_all(db).await?))
            }
        }
    }

    /// Does nothing: SQLite has no notifications, so waiters in other processes poll.
    async fn notify_waiters(&self, _key: &str) -> sqlx::Result<()> {
        Ok(())
    }

    async fn mark_wanted(&self, key: &str) -> sqlx::Result<bool> {
        let want = sqlx::query(statement(include_str!("sql/mark_wanted.sql"))).bind(key);
        Ok(!self.writer().await?.run(want).await?.is_empty())
    }

    fn wait_for_release(&self, _key: &str) -> impl Future<Output = ()> + Send + 'static {
        pending()
    }

    async fn sweep(&self, grace: Duration) -> sqlx::Result<u64> {
        let sweep =
            sqlx::query(statement(include_str!("sql/sqlite/sweep.sql"))).bind(millis(grace));
        Ok(self.writer().await?.run(sweep).await?.len() as u64)
    }

    async fn list(&self) -> sqlx::Result<Vec<LeaseRow>> {
        sqlx::query_as(statement(include_str!("sql/sqlite/list.sql")))
            .fetch_all(self.read(WaitPolicy::QUEUE).await?.connection())
            .await
    }

    async fn free(&self, token: &Token) -> sqlx::Result<bool> {
        let free = sqlx::query(statement(include_str!("sql/free.sql"))).bind(token.as_str());
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
