//! Leases in Postgres.

use std::sync::Arc;
use std::time::Duration;

use rocket_tx::db::{
    self, Identity, Migrations, PostgresPool, PostgresSession, TransactionPool, WaitPolicy,
};
use rocket_tx::extend::{Limits, Liveness, OnReturn, Sessions, Settings};
use sqlx::migrate;
use sqlx::postgres::PgConnection;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
use super::fencing::{open_fence, take};
use super::listener::{Listener, no_reply, payload};
use super::sql::statement;
use super::store::{
    Attempt, Claim, Exclusion, Fence, LeasePool, LeaseRow, LeaseStore, ReleaseOutcome, Sealed,
    Token, millis, outcomes_of, parameter_of, spawn_before_closing,
};

/// Makes leases in a Postgres database, for services on more than one machine. All times are those
/// of the server's clock.
pub type PostgresLockManager = LeaseLockManager<PostgresLeases>;

impl PostgresLockManager {
    /// Makes a manager of leases in the database of `pool`. It has separate connections: two for
    /// statements, and one for notifications, which is opened for the first waiter.
    pub fn new(pool: &PostgresPool) -> Self {
        Self::over(pool.leases())
    }
}

impl LeasePool for PostgresPool {
    type Leases = PostgresLeases;

    fn leases(&self) -> PostgresLeases {
        // With `synchronous_commit=off` a crash of the server may lose a lease. The fence then
        // makes the commit of its holder fail.
        let settings = self
            .settings()
            .clone()
            .application_name("rocket_tx leases")
            .with("synchronous_commit", "off");
        PostgresLeases {
            requests: self.clone(),
            sessions: sessions(&settings, LOCK_TIMEOUT),
            listener: Listener::new(settings.session_options()),
            lock_timeout: LOCK_TIMEOUT,
            settings: Arc::new(settings),
        }
    }
}

/// The rows of `aggregate_locks` in a Postgres database.
#[derive(Clone)]
pub struct PostgresLeases {
    requests: PostgresPool,
    settings: Arc<Settings>,
    /// Separate from the sessions of requests, so that renewals and releases do not wait for the
    /// traffic that they protect.
    sessions: Sessions,
    listener: Listener,
    lock_timeout: Duration,
}

/// The number of sessions for lease statements. Each statement takes one round trip.
const SESSIONS: u32 = 2;

/// The longest time that a lease statement takes on a running server, in addition to its wait for a
/// locked row.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// The initial `lock_timeout`, used until the retry interval is set.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the pool of sessions. A statement waits for a locked row no longer than `lock_timeout`.
fn sessions(settings: &Settings, lock_timeout: Duration) -> Sessions {
    let lock_timeout = lock_timeout.max(Duration::from_millis(1));
    let settings = settings.clone().with_limit("lock_timeout", lock_timeout);
    let limits = Limits {
        most: SESSIONS,
        least: 0,
        wait: Duration::from_secs(5),
        idle: Duration::from_secs(600),
    };
    Sessions::new(settings, limits, Arc::default())
}

/// Returns `true` if the error means that the row of the lease is contended: lock_not_available,
/// query_canceled, deadlock_detected, serialization_failure. The attempt is then reported as
/// [`Attempt::Held`], and the waiter tries again.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
///
/// This list is separate from the one in `rocket_tx/src/db/error_class.rs`, which classifies the
/// errors of all statements. `ErrorClass::Busy` there also includes too_many_connections,
/// out_of_memory and a pool that timed out. Those errors say nothing about the row, so they are
/// returned to the caller here. A waiter would otherwise try again until its longest wait, and then
/// report that another holder had the key. A new code for a contended row belongs in both lists.
fn is_contention(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("55P03" | "57014" | "40P01" | "40001"))
}

impl PostgresLeases {
    /// Runs lease statements on a session. All their replies are read, so a session on which no
    /// statement failed is reused without a check.
    ///
    /// On a dead network this fails at the latest after the longest wait for a session, plus
    /// `lock_timeout` and [`REPLY_TIMEOUT`].
    async fn on_session<T>(
        &self,
        work: impl AsyncFnOnce(&mut PostgresSession) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut session = self
            .sessions
            .acquire(WaitPolicy::QUEUE, Liveness::Verified)
            .await?;
        let limit = self.lock_timeout + REPLY_TIMEOUT;
        let result = timeout(limit, work(&mut session)).await;
        session.set_on_return(match &result {
            Ok(Ok(_)) => OnReturn::Reuse,
            Ok(Err(_)) => OnReturn::Check,
            Err(_) => OnReturn::Close,
        });
        result.unwrap_or_else(|_| Err(no_reply(limit)))
    }

    async fn try_take(&self, claim: &Claim) -> sqlx::Result<Attempt> {
        self.on_session(async |db| {
            let mut tried = take(db, claim).await?;
            if !tried.fence_is_open {
                open_fence(db).await?;
                tried = take(db, claim).await?;
            }
            Ok(match tried.fencing_token {
                Some(fencing_token) => Attempt::Taken {
                    fencing_token,
                    taken_over: tried.lives == Some(false),
                },
                // If `lives` is not true, another process took the lease during this statement.
                // Nothing is known about the mark of its row.
                None => Attempt::Held {
                    wanted: tried.lives == Some(true) && tried.wanted == Some(true),
                },
            })
        })
        .await
    }
}

async fn notify(db: &mut PgConnection, keys: &[impl AsRef<str>]) -> sqlx::Result<()> {
    let payloads: Vec<String> = keys.iter().map(|key| payload(key.as_ref())).collect();
    let notify = sqlx::query(statement(include_str!("sql/postgres/notify.sql"))).bind(payloads);
    notify.execute(db).await.map(drop)
}

/// Wakes the waiters for `keys`. An error is only logged: the keys are free, and waiters also poll.
async fn wake(db: &mut PgConnection, keys: &[impl AsRef<str>]) {
    if let Err(error) = notify(db, keys).await {
        tracing::debug!(%error, "could not notify the waiters for a lease; they poll");
    }
}

impl Sealed for PostgresLeases {}

/// Deletes the row of a lease if it is still ours.
async fn delete(db: &mut PgConnection, key: &str, token: &Token) -> sqlx::Result<ReleaseOutcome> {
    let release = sqlx::query_scalar(statement(include_str!("sql/release.sql")))
        .bind(key)
        .bind(token.as_str());
    Ok(ReleaseOutcome::found(release.fetch_optional(db).await?))
}

impl LeaseStore for PostgresLeases {
    type Session = PostgresSession;

    fn database(&self) -> &Identity {
        self.requests.identity()
    }

    /// Ignores `_wait`: no request holds one of the sessions for lease statements, so waiting for
    /// one cannot cause a deadlock.
    async fn take(&self, claim: &Claim, _wait: WaitPolicy) -> sqlx::Result<Attempt> {
        match self.try_take(claim).await {
            Err(error) if is_contention(&error) => Ok(Attempt::Held { wanted: false }),
            result => result,
        }
    }

    fn needs_read_committed(&self) -> bool {
        true
    }

    async fn exclusion(
        _: &mut PgConnection,
        _key: &str,
        _ours: Option<&Token>,
    ) -> sqlx::Result<Exclusion> {
        Ok(Exclusion::None)
    }

    async fn renew(&self, claim: &Claim, stopped: &CancellationToken) -> sqlx::Result<bool> {
        /// How long a settlement waits for a renewal that is under way.
        const STOP_TIMEOUT: Duration = Duration::from_secs(1);

        let renewing = self.on_session(async |db| {
            let renew = sqlx::query(statement(include_str!("sql/postgres/renew.sql")))
                .bind(&*claim.key)
                .bind(claim.token.as_str())
                .bind(millis(claim.ttl));
            Ok(renew.fetch_optional(&mut **db).await?.is_some())
        });
        tokio::select! {
            renewed = renewing => renewed,
            () = async { stopped.cancelled().await; sleep(STOP_TIMEOUT).await } => {
                Err(no_reply(STOP_TIMEOUT))
            }
        }
    }

    async fn release(&self, key: &str, token: &Token) -> sqlx::Result<ReleaseOutcome> {
        self.on_session(async |db| {
            let released = delete(db, key, token).await?;
            // Only if wanted: a transaction with NOTIFY takes a cluster-wide lock at its commit.
            if released.wanted {
                wake(db, &[key]).await;
            }
            Ok(released)
        })
        .await
    }

    async fn release_within(
        db: &mut PgConnection,
        fences: &[&Fence],
    ) -> sqlx::Result<Vec<ReleaseOutcome>> {
        match fences {
            [] => Ok(Vec::new()),
            [fence] => Ok(vec![delete(db, &fence.key, &fence.token).await?]),
            fences => {
                const SQL: &str = include_str!("sql/postgres/release_all.sql");

                let release = sqlx::query_as(statement(SQL)).bind(parameter_of(fences));
                Ok(outcomes_of(fences, release.fetch_all(db).await?))
            }
        }
    }

    async fn notify_waiters(&self, key: &str) -> sqlx::Result<()> {
        self.on_session(async |db| notify(db, &[key]).await).await
    }

    async fn mark_wanted(&self, key: &str) -> sqlx::Result<bool> {
        self.on_session(async |db| {
            let mark = sqlx::query(statement(include_str!("sql/mark_wanted.sql"))).bind(key);
            Ok(mark.fetch_optional(&mut **db).await?.is_some())
        })
        .await
    }

    fn wait_for_release(&self, key: &str) -> impl Future<Output = ()> + Send + 'static {
        self.listener.wait_for_release(key)
    }

    async fn sweep(&self, grace: Duration) -> sqlx::Result<u64> {
        self.on_session(async |db| {
            let swept: Vec<String> =
                sqlx::query_scalar(statement(include_str!("sql/postgres/sweep.sql")))
                    .bind(millis(grace))
                    .fetch_all(&mut **db)
                    .await?;
            if !swept.is_empty() {
                wake(db, &swept).await;
            }
            Ok(swept.len() as u64)
        })
        .await
    }

    async fn list(&self) -> sqlx::Result<Vec<LeaseRow>> {
        let list = sqlx::query_as(statement(include_str!("sql/postgres/list.sql")));
        self.on_session(async |db| list.fetch_all(&mut **db).await)
            .await
    }

    async fn free(&self, token: &Token) -> sqlx::Result<bool> {
        self.on_session(async |db| {
            let freed: Option<String> = sqlx::query_scalar(statement(include_str!("sql/free.sql")))
                .bind(token.as_str())
                .fetch_optional(&mut **db)
                .await?;
            if let Some(key) = &freed {
                wake(db, &[key]).await;
            }
            Ok(freed.is_some())
        })
        .await
    }

    async fn migrate(&self) -> Result<(), db::Error> {
        let mut migrator = migrate!("migrations/leases/postgres");
        migrator.dangerous_set_table_name("_aggregate_locks_migrations");
        self.requests
            .migrate(&Migrations::new().postgres(migrator))
            .await?;
        let query = sqlx::query_scalar("SELECT current_setting('default_transaction_isolation')");
        let isolation = self.on_session(async |db| query.fetch_one(&mut **db).await);
        let isolation: String = isolation.await?;
        match isolation.as_str() {
            "read committed" => Ok(()),
            isolation => Err(db::Error::Isolation(isolation.to_owned())),
        }
    }

    fn set_retry_interval(&mut self, interval: Duration) {
        self.sessions = sessions(&self.settings, interval);
        self.lock_timeout = interval;
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        spawn_before_closing(&self.requests, work);
    }
}
