//! Leases in SQLite.

use std::collections::HashSet;
use std::time::Duration;

use rocket::serde::json::serde_json::json;
use rocket_tx::db::{
    self, Access, Identity, Migrations, Session, SqlitePool, SqliteSession, TransactionPool,
    WaitPolicy,
};
use rocket_tx::extend::{OneShotWriter, is_sqlite_busy};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Column, Row, migrate};
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
use super::file_waiters::FileWaiters;
use super::sql::statement;
use super::store::{
    Attempt, Claim, ClaimRow, Exclusion, Fence, LeasePool, LeaseRow, LeaseStore, Look,
    ReleaseOutcome, Sealed, Token, attempts_of, keys_and_tokens, millis, outcomes_of,
    spawn_before_closing,
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
            waiters: FileWaiters::new(self.path()),
            retry_interval: Duration::ZERO,
        }
    }
}

/// The rows of `aggregate_locks` in a SQLite file.
#[derive(Clone)]
pub struct SqliteLeases {
    pool: SqlitePool,
    waiters: FileWaiters,
    retry_interval: Duration,
}

impl SqliteLeases {
    /// Returns a reader, which never waits for a writer.
    async fn read(&self, wait: WaitPolicy) -> sqlx::Result<SqliteSession> {
        self.pool.session(Access::ReadOnly, wait).await
    }

    /// Takes in one hop (a message to the writer's thread and its reply) and one commit.
    async fn try_take(
        &self,
        claim: &Claim,
        wait: WaitPolicy,
        marks: bool,
    ) -> sqlx::Result<Attempt> {
        let take = sqlx::query(statement(include_str!("sql/sqlite/take.sql")))
            .bind(&*claim.key)
            .bind(&*claim.owner)
            .bind(claim.token.as_str())
            .bind(millis(claim.ttl))
            .bind(claim.wanted)
            .bind(marks);
        let writer = self.pool.writer(wait).await?;
        let found = writer.run(take).await?;
        let has_row = found.first().is_some_and(|row| is_column(row, "has_row"));
        Ok(match found.last() {
            Some(row) if is_column(row, "fencing_token") => Attempt::Taken {
                fencing_token: row.try_get(0)?,
                taken_over: has_row,
            },
            _ => Attempt::Held { wanted: marks },
        })
    }

    /// As [`try_take`](Self::try_take), for several keys.
    async fn try_take_all(
        &self,
        claims: &[&Claim],
        wait: WaitPolicy,
    ) -> sqlx::Result<Vec<Attempt>> {
        let rows: Vec<_> = claims.iter().copied().map(ClaimRow::from).collect();
        let take = sqlx::query(statement(include_str!("sql/sqlite/take_all.sql")))
            .bind(json!(rows).to_string());
        let found = self.pool.writer(wait).await?.run(take).await?;
        let (before, taken): (Vec<_>, Vec<_>) =
            found.iter().partition(|row| is_column(row, "has_row"));
        let before: sqlx::Result<HashSet<String>> =
            before.iter().map(|row| row.try_get(0)).collect();
        let before = before?;
        let attempt = |row: &SqliteRow| -> sqlx::Result<(String, Attempt)> {
            let key: String = row.try_get(0)?;
            let taken = Attempt::Taken {
                fencing_token: row.try_get(1)?,
                taken_over: before.contains(&key),
            };
            Ok((key, taken))
        };
        let taken: sqlx::Result<Vec<_>> = taken.into_iter().map(attempt).collect();
        Ok(attempts_of(claims, taken?))
    }

    /// Looks with a reader first, so that a waiter does not keep others from writing.
    async fn try_want(&self, claim: &Claim) -> sqlx::Result<Look> {
        let mut reader = self.read(WaitPolicy::QUEUE).await?;
        match row_state(reader.connection(), &claim.key, Some(&claim.token)).await? {
            RowState::Free | RowState::Expired => return Ok(Look::Free),
            RowState::Held { wanted: true } => return Ok(Look::Held { wanted: true }),
            RowState::Held { wanted: false } => drop(reader),
        }
        let mark = sqlx::query(statement(include_str!("sql/sqlite/mark_wanted.sql")))
            .bind(&*claim.key)
            .bind(claim.token.as_str());
        Ok(match self.writer().await?.run(mark).await?.is_empty() {
            // The lease was released in the meantime, or another process has marked it.
            true => Look::Held { wanted: false },
            false => Look::Held { wanted: true },
        })
    }

    /// Returns the writer. While its statement waits for a lock of another process, no other task
    /// of this process can write. So this wait is limited to one retry interval.
    async fn writer(&self) -> sqlx::Result<OneShotWriter> {
        self.pool
            .writer(WaitPolicy::QUEUE.busy_timeout(self.retry_interval))
            .await
    }
}

fn is_column(row: &SqliteRow, name: &str) -> bool {
    row.columns()
        .first()
        .is_some_and(|column| column.name() == name)
}

const RELEASE: &str = include_str!("sql/release.sql");

/// Releases several leases: the `leases` of a JSON object. Returns key and `wanted` of each row.
const RELEASE_ALL: &str = include_str!("sql/sqlite/release_all.sql");

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

    async fn take(&self, claim: &Claim, wait: WaitPolicy, marks: bool) -> sqlx::Result<Attempt> {
        match self.try_take(claim, wait, marks).await {
            // `wanted: true` skips the marking of the row: while the file is busy, the mark could
            // not be written either.
            Err(error) if is_contention(&error) => Ok(Attempt::Held { wanted: true }),
            result => result,
        }
    }

    async fn take_all(&self, claims: &[&Claim], wait: WaitPolicy) -> sqlx::Result<Vec<Attempt>> {
        match self.try_take_all(claims, wait).await {
            Err(error) if is_contention(&error) => Ok(attempts_of(claims, Vec::new())),
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

    async fn release(&self, key: &str, token: &Token, wakes: bool) -> sqlx::Result<ReleaseOutcome> {
        let release = sqlx::query(statement(RELEASE))
            .bind(key)
            .bind(token.as_str());
        let gone = self.writer().await?.run(release).await?;
        let wanted = gone.first().map(|row| row.try_get(0)).transpose()?;
        if wakes && wanted == Some(true) {
            self.waiters.wake_others();
        }
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
                let leases = json!({"leases": keys_and_tokens(fences)}).to_string();
                let release = sqlx::query_as(statement(RELEASE_ALL)).bind(leases);
                Ok(outcomes_of(fences, release.fetch_all(db).await?))
            }
        }
    }

    async fn notify_waiters(&self, _key: &str) -> sqlx::Result<()> {
        self.waiters.wake_others();
        Ok(())
    }

    async fn want(&self, claim: &Claim) -> sqlx::Result<Look> {
        match self.try_want(claim).await {
            // As in `take`.
            Err(error) if is_contention(&error) => Ok(Look::Held { wanted: true }),
            result => result,
        }
    }

    fn wakes_waiters(&self) -> bool {
        self.waiters.can_wake()
    }

    fn wait_for_release(&self, _key: &str) -> impl Future<Output = ()> + Send + 'static {
        self.waiters.wait()
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

    async fn migrate(&self) -> Result<(), db::PoolError> {
        let mut migrator = migrate!("migrations/leases/sqlite");
        migrator.dangerous_set_table_name("_aggregate_locks_migrations");
        self.pool.migrate(&Migrations::new().sqlite(migrator)).await
    }

    fn set_retry_interval(&mut self, interval: Duration) {
        self.retry_interval = interval;
    }

    /// Does nothing: lease statements use the pool's only writer.
    fn set_max_connections(&mut self, _number: u32) {}

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        spawn_before_closing(&self.pool, work);
    }
}
