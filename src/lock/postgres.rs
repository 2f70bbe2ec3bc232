//! Leases in Postgres.

use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate;
use sqlx::postgres::PgConnection;
use tokio_util::sync::CancellationToken;

use super::LeaseLockManager;
use super::listener::Listener;
use super::statements::postgres as statements;
use super::store::{
    Attempt, Claim, Exclusion, Found, LeasePool, LeaseRow, LeaseStore, Released, Token,
    spawn_before_closing,
};
use crate::db::{
    self, Identity, Limits, Liveness, Migrations, OnReturn, Patience, PostgresPool,
    PostgresSession, Sessions, Settings, TransactionPool,
};

/// Leases in a Postgres database, for services on more than one machine. All times are the
/// server's.
pub type PostgresLockManager = LeaseLockManager<PostgresLeases>;

impl PostgresLockManager {
    /// Leases in the database of `pool`, on connections of their own: two for statements, and one
    /// that listens as soon as somebody waits.
    pub fn new(pool: &PostgresPool) -> Self {
        Self::over(pool.leases())
    }
}

impl LeasePool for PostgresPool {
    type Leases = PostgresLeases;

    fn leases(&self) -> PostgresLeases {
        // A lease that is lost in a crash of the server is caught by the fence.
        let settings = self
            .settings()
            .clone()
            .application_name("rocket_tx leases")
            .with("synchronous_commit", "off");
        PostgresLeases {
            requests: self.clone(),
            sessions: sessions(&settings, Duration::from_secs(1)),
            listener: Listener::new(settings.connect_options()),
            settings: Arc::new(settings),
        }
    }
}

/// The rows of `aggregate_locks` in a Postgres database.
#[derive(Clone)]
pub struct PostgresLeases {
    requests: PostgresPool,
    settings: Arc<Settings>,
    /// Of their own, so that renewals and releases do not starve behind the traffic that they
    /// protect.
    sessions: Sessions,
    listener: Listener,
}

/// Sessions for lease statements; each takes one round trip.
const SESSIONS: u32 = 2;

/// `lock_timeout` bounds how long a statement waits for a row that somebody is at.
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

/// lock_not_available, query_canceled, deadlock_detected, serialization_failure: somebody is at
/// the row. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_contention(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("55P03" | "57014" | "40P01" | "40001"))
}

impl PostgresLeases {
    /// Runs statements on a session. They are ours, and all that comes back is read: if none failed,
    /// the next one may have the session at once.
    async fn on_session<T>(
        &self,
        work: impl AsyncFnOnce(&mut PostgresSession) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut session = self
            .sessions
            .acquire(Patience::Wait, Liveness::Verified)
            .await?;
        let result = work(&mut session).await;
        if result.is_ok() {
            session.set_on_return(OnReturn::Reuse);
        }
        result
    }
}

impl LeaseStore for PostgresLeases {
    type Session = PostgresSession;

    fn database(&self) -> &Identity {
        self.requests.identity()
    }

    /// No request ever holds one of the sessions that it needs, so it need not be impatient.
    async fn take(&self, claim: &Claim, _patience: Patience) -> sqlx::Result<Attempt> {
        let taken = self.on_session(async |db| {
            let found = statements::look(db, &claim.key, Some(&claim.token)).await?;
            if let Found::Held { wanted } = found {
                return Ok(Attempt::Held { wanted });
            }
            let taken = match statements::take(db, claim).await {
                Err(error) if is_contention(&error) => return Ok(Attempt::Held { wanted: false }),
                taken => taken?,
            };
            let fencing_token = match taken {
                // Somebody came between.
                None => return Ok(Attempt::Held { wanted: false }),
                Some((fencing_token, true)) => Some(fencing_token),
                Some((_, false)) => statements::renumber(db, claim).await?,
            };
            Ok(match fencing_token {
                Some(fencing_token) => Attempt::Taken {
                    fencing_token,
                    taken_over: found == Found::Expired,
                },
                None => Attempt::Held { wanted: false },
            })
        });
        taken.await
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

    async fn renew(&self, claim: &Claim, _stopped: &CancellationToken) -> sqlx::Result<bool> {
        self.on_session(async |db| statements::renew(db, claim).await)
            .await
    }

    async fn release(&self, key: &str, token: &Token) -> sqlx::Result<Released> {
        self.on_session(async |db| {
            let released = statements::release(db, key, token).await?;
            // Only if wanted: NOTIFY takes a lock of the whole cluster at commit.
            if released.wanted {
                statements::notify(db, key).await?;
            }
            Ok(released)
        })
        .await
    }

    async fn release_within(
        db: &mut PgConnection,
        key: &str,
        token: &Token,
    ) -> sqlx::Result<Released> {
        statements::release(db, key, token).await
    }

    async fn announce(&self, key: &str) -> sqlx::Result<()> {
        self.on_session(async |db| statements::notify(db, key).await)
            .await
    }

    async fn want(&self, key: &str) -> sqlx::Result<bool> {
        self.on_session(async |db| statements::want(db, key).await)
            .await
    }

    fn freed(&self, key: &str) -> impl Future<Output = ()> + Send + 'static {
        self.listener.freed(key)
    }

    async fn sweep(&self, grace: Duration) -> sqlx::Result<u64> {
        self.on_session(async |db| {
            let swept = statements::sweep(db, grace).await?;
            for key in &swept {
                statements::notify(db, key).await?;
            }
            Ok(swept.len() as u64)
        })
        .await
    }

    async fn list(&self) -> sqlx::Result<Vec<LeaseRow>> {
        self.on_session(async |db| statements::list(db).await).await
    }

    async fn free(&self, token: &Token) -> sqlx::Result<bool> {
        self.on_session(async |db| {
            let freed = statements::free(db, token).await?;
            if let Some(key) = &freed {
                statements::notify(db, key).await?;
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
        let isolation = self.on_session(async |db| statements::default_isolation(db).await);
        match isolation.await?.as_str() {
            "read committed" => Ok(()),
            isolation => Err(db::Error::Isolation(isolation.to_owned())),
        }
    }

    fn set_retry_interval(&mut self, interval: Duration) {
        self.sessions = sessions(&self.settings, interval);
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        spawn_before_closing(&self.requests, work);
    }
}
