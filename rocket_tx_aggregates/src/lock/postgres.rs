//! Leases in Postgres.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use rocket_tx::db::{
    self, Identity, Migrations, PostgresPool, PostgresSession, TransactionPool, WaitPolicy,
};
use rocket_tx::extend::{ErrorClass, Limits, Liveness, OnReturn, Sessions, Settings};
use sqlx::postgres::PgConnection;
use sqlx::{Row, migrate};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
use super::fencing::{TakenRow, look, take, take_all};
use super::listener::{Listener, no_reply, payload};
use super::sql::statement;
use super::store::{
    Attempt, Claim, Exclusion, Fence, LeasePool, LeaseRow, LeaseStore, Look, ReleaseOutcome,
    Sealed, Token, attempts_of, keys_and_tokens, millis, outcomes_of, spawn_before_closing,
};

/// Makes leases in a Postgres database, for services on more than one machine. All times are those
/// of the server's clock.
pub type PostgresLockManager = LeaseLockManager<PostgresLeases>;

impl PostgresLockManager {
    /// Makes a manager of leases in the database of `pool`. It has separate connections: some for
    /// statements, which are opened when they are needed, and one for notifications, which is opened
    /// for the first waiter.
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
            sessions: sessions(&settings, MAX_CONNECTIONS, LOCK_TIMEOUT),
            listener: Listener::new(settings.session_options()),
            max_connections: MAX_CONNECTIONS,
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
    max_connections: u32,
    lock_timeout: Duration,
}

/// The most sessions for lease statements, unless another number is set.
const MAX_CONNECTIONS: u32 = 4;

/// The longest time that a lease statement takes on a running server, in addition to its wait for a
/// locked row.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// The initial `lock_timeout`, used until the retry interval is set.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the pool of sessions. A session is opened when all open ones are in use. A statement waits
/// for a locked row no longer than `lock_timeout`.
fn sessions(settings: &Settings, most: u32, lock_timeout: Duration) -> Sessions {
    let lock_timeout = lock_timeout.max(Duration::from_millis(1));
    let settings = settings.clone().with_limit("lock_timeout", lock_timeout);
    Sessions::new(settings, Limits::new(most), Arc::default())
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

/// Returns `true` if the session has ended.
fn is_dead(error: &sqlx::Error) -> bool {
    ErrorClass::of(error) == ErrorClass::Lost
        && !matches!(error, sqlx::Error::Io(error) if error.kind() == ErrorKind::TimedOut)
}

impl PostgresLeases {
    /// Runs lease statements on a session. If the session had died while it was idle, runs them
    /// again on another one: they may be executed twice.
    ///
    /// On a dead network this fails at the latest after the longest wait for a session, plus
    /// `lock_timeout` and [`REPLY_TIMEOUT`].
    async fn on_session<T>(
        &self,
        work: impl AsyncFnOnce(&mut PostgresSession) -> sqlx::Result<T> + Clone,
    ) -> sqlx::Result<T> {
        match self.try_session(Liveness::Recent, work.clone()).await {
            Err(error) if is_dead(&error) => self.try_session(Liveness::Verified, work).await,
            result => result,
        }
    }

    /// Runs lease statements on a session once. All their replies are read, so a session on which
    /// no statement failed is reused without a check.
    async fn try_session<T>(
        &self,
        liveness: Liveness,
        work: impl AsyncFnOnce(&mut PostgresSession) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut session = self.sessions.acquire(WaitPolicy::QUEUE, liveness).await?;
        let limit = self.lock_timeout + REPLY_TIMEOUT;
        let result = timeout(limit, work(&mut session)).await;
        session.set_on_return(match &result {
            Ok(Ok(_)) => OnReturn::Reuse,
            Ok(Err(_)) => OnReturn::Check,
            Err(_) => OnReturn::Close,
        });
        // The sessions that are idle have probably died too.
        if result
            .as_ref()
            .map_or(true, |result| result.as_ref().is_err_and(is_dead))
        {
            self.sessions.forget_idle();
        }
        result.unwrap_or_else(|_| Err(no_reply(limit)))
    }

    fn set_sessions(&mut self) {
        self.sessions = sessions(&self.settings, self.max_connections, self.lock_timeout);
    }

    /// Takes first, and looks only if that is refused.
    async fn try_take(&self, claim: &Claim, marks: bool) -> sqlx::Result<Attempt> {
        self.on_session(async |db| {
            let mut taken = take(db, claim).await?;
            let mut wanted = false;
            if taken.is_none() {
                let (found, has_opened) = look(db, claim, marks).await?;
                // If no holder was found, another process took the lease and released it.
                wanted = found.is_held && found.is_wanted;
                if has_opened {
                    taken = take(db, claim).await?;
                }
            }
            Ok(match taken {
                Some(TakenRow {
                    fencing_token,
                    taken_over,
                }) => Attempt::Taken {
                    fencing_token,
                    taken_over,
                },
                None => Attempt::Held { wanted },
            })
        })
        .await
    }
}

async fn notify(db: &mut PgConnection, payloads: Vec<String>) -> sqlx::Result<()> {
    let notify = sqlx::query(statement(include_str!("sql/postgres/notify.sql"))).bind(payloads);
    notify.execute(db).await.map(drop)
}

/// Wakes the waiters for `keys` in all processes. An error is only logged: the keys are free, and
/// waiters also poll.
async fn wake(db: &mut PgConnection, keys: &[impl AsRef<str>]) {
    let payloads = keys.iter().map(|key| payload(key.as_ref())).collect();
    if let Err(error) = notify(db, payloads).await {
        tracing::debug!(%error, "could not notify the waiters for a lease; they poll");
    }
}

impl Sealed for PostgresLeases {}

impl LeaseStore for PostgresLeases {
    type Session = PostgresSession;

    fn database(&self) -> &Identity {
        self.requests.identity()
    }

    /// Ignores `_wait`: no request holds one of the sessions for lease statements, so waiting for
    /// one cannot cause a deadlock.
    async fn take(&self, claim: &Claim, _wait: WaitPolicy, marks: bool) -> sqlx::Result<Attempt> {
        match self.try_take(claim, marks).await {
            Err(error) if is_contention(&error) => Ok(Attempt::Held { wanted: false }),
            result => result,
        }
    }

    /// Ignores `_wait`, as [`take`](Self::take) does.
    async fn take_all(&self, claims: &[&Claim], _wait: WaitPolicy) -> sqlx::Result<Vec<Attempt>> {
        let taken = self.on_session(async |db| take_all(db, claims).await).await;
        match taken {
            Err(error) if is_contention(&error) => Ok(attempts_of(claims, Vec::new())),
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

    async fn release(&self, key: &str, token: &Token, wakes: bool) -> sqlx::Result<ReleaseOutcome> {
        let payload = wakes.then(|| self.listener.payload_to_others(key));
        // Only once: if the reply is lost, the row may be gone, and the caller must know that.
        self.try_session(Liveness::Recent, async |db| {
            let release = sqlx::query(statement(include_str!("sql/postgres/release.sql")))
                .bind(key)
                .bind(token.as_str())
                .bind(payload.as_deref());
            let gone = release.fetch_optional(&mut **db).await?;
            let wanted = gone.map(|row| row.try_get(0)).transpose()?;
            Ok(ReleaseOutcome::found(wanted))
        })
        .await
    }

    async fn release_within(
        db: &mut PgConnection,
        fences: &[&Fence],
    ) -> sqlx::Result<Vec<ReleaseOutcome>> {
        match fences {
            [] => Ok(Vec::new()),
            [fence] => {
                let release = sqlx::query_scalar(statement(include_str!("sql/release.sql")))
                    .bind(&*fence.key)
                    .bind(fence.token.as_str());
                let wanted = release.fetch_optional(db).await?;
                Ok(vec![ReleaseOutcome::found(wanted)])
            }
            fences => {
                const SQL: &str = include_str!("sql/postgres/release_all.sql");

                let release =
                    sqlx::query_as(statement(SQL)).bind(keys_and_tokens(fences).to_string());
                Ok(outcomes_of(fences, release.fetch_all(db).await?))
            }
        }
    }

    async fn notify_waiters(&self, key: &str) -> sqlx::Result<()> {
        let payload = self.listener.payload_to_others(key);
        self.on_session(async |db| notify(db, vec![payload.clone()]).await)
            .await
    }

    async fn want(&self, claim: &Claim) -> sqlx::Result<Look> {
        let found = self
            .on_session(async |db| look(db, claim, true).await)
            .await;
        Ok(match found {
            Ok((found, _)) if found.is_held => Look::Held {
                wanted: found.is_wanted,
            },
            Ok(_) => Look::Free,
            Err(error) if is_contention(&error) => Look::Held { wanted: false },
            Err(error) => return Err(error),
        })
    }

    fn wakes_waiters(&self) -> bool {
        true
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
        self.on_session(async |db| {
            let list = sqlx::query_as(statement(include_str!("sql/postgres/list.sql")));
            list.fetch_all(&mut **db).await
        })
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

    async fn migrate(&self) -> Result<(), db::PoolError> {
        let mut migrator = migrate!("migrations/leases/postgres");
        migrator.dangerous_set_table_name("_aggregate_locks_migrations");
        self.requests
            .migrate(&Migrations::new().postgres(migrator))
            .await?;
        const ISOLATION: &str = "SELECT current_setting('default_transaction_isolation')";
        let isolation =
            self.on_session(async |db| sqlx::query_scalar(ISOLATION).fetch_one(&mut **db).await);
        let isolation: String = isolation.await?;
        match isolation.as_str() {
            "read committed" => Ok(()),
            isolation => Err(db::PoolError::Isolation(isolation.to_owned())),
        }
    }

    fn set_retry_interval(&mut self, interval: Duration) {
        self.lock_timeout = interval;
        self.set_sessions();
    }

    fn set_max_connections(&mut self, number: u32) {
        self.max_connections = number;
        self.set_sessions();
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        spawn_before_closing(&self.requests, work);
    }
}
