//! Postgres: a pool for transactions, and a separate read-only pool.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod` | [`PostgresPool`]: opens, checks out sessions, migrates, closes |
//! | `sessions` | the sessions of one database, each with one user at a time |
//! | `session` | one session, and what happens to it when it is returned |
//! | `settings` | the settings of a session, and how a used session gets them back |
//! | `proof` | matches replies with statements, and makes the seal and the proof (see below) |
//! | `transaction` | BEGIN, the proof, COMMIT and ROLLBACK |
//! | `commit_turns` | the order of requests on their way to COMMIT, while there are conflicts |
//! | `fate` | how a transaction ended whose COMMIT or ROLLBACK got no reply |
//! | `readiness` | whether the server replies and takes writes, on a separate connection |
//! | `pooler` | detects a pooler between this process and the server |
//!
//! The seal makes the server refuse each COMMIT that is not ours, that is, not from this library.
//! The proof is a savepoint. It shows that the open transaction is still the one that our BEGIN
//! began.

mod atomic;
mod commit_turns;
mod fate;
mod pooler;
mod proof;
mod readiness;
mod session;
mod sessions;
mod settings;
mod transaction;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocket::figment::Figment;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Row};
use tokio::time::timeout;

use self::pooler::Opened;
use self::readiness::Probe;
pub use self::session::OnReturn;
pub use self::session::PostgresSession;
pub(super) use self::sessions::connect_with_retries;
pub use self::sessions::{Limits, Liveness, Sessions};
use self::sessions::{is_transient, no_reply};
pub use self::settings::Settings;
use self::settings::{GUARD, SetBy};
#[cfg(feature = "testing")]
use super::Backend;
use super::config::SLOW;
use super::{
    Access, Attachment, Config, Identity, Migrations, NotReady, OpenError, PoolError,
    TransactionPool, WaitPolicy, pool, scheme,
};

/// A Postgres database: at most `max_connections` sessions for transactions, and as many read-only
/// sessions.
#[derive(Clone)]
pub struct PostgresPool(Arc<Inner>);

struct Inner {
    sessions: Sessions,
    /// Sessions with `default_transaction_read_only`. They are a separate pool, so that a session
    /// that was made read-only is never checked out for writing.
    readers: Sessions,
    settings: Settings,
    identity: Identity,
    attachment: Arc<OnceLock<Attachment>>,
    probe: Probe,
}

impl PostgresPool {
    pub(super) async fn connect(config: &Config) -> Result<Self, PoolError> {
        let options = connect_options(config)?;
        let wait = config.connect_timeout.0;
        let limits = Limits::new(config.max_connections).wait(wait);
        let limits = match config.idle_timeout {
            Some(timeout) => limits.idle(timeout.0),
            None => limits,
        };
        let Opened {
            settings,
            mut first,
        } = pooler::open(
            settings(&options, SetBy::Startup, config).guarding_writes(),
            settings(&options, SetBy::Statements, config).guarding_writes(),
            wait,
        )
        .await?;
        let identity = timeout(wait, identity(&mut first.connection))
            .await
            .unwrap_or_else(|_| Err(no_reply(wait)))
            .map_err(OpenError::Database)?;
        let attachment = Arc::new(OnceLock::new());
        let unguarded = settings.clone().unguarded();
        let readers = unguarded.clone().with(GUARD, "on");
        let limits_of_writers = limits.least(config.min_connections);
        Ok(Self(Arc::new(Inner {
            sessions: Sessions::new(settings, limits_of_writers, Arc::clone(&attachment))
                .with(first),
            readers: Sessions::new(readers, limits, Arc::clone(&attachment)),
            settings: unguarded,
            identity,
            attachment,
            probe: Probe::default(),
        })))
    }

    /// Returns the settings of the pool's sessions, without the write guard
    /// (`default_transaction_read_only`) that the sessions for transactions have in addition.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Checks out a session for statements without a BEGIN of this library: those of a `Read`, or
    /// those of the guard of rocket_db_pools. sqlx counts no open transaction on the session.
    async fn plain(&self, from: &Sessions, wait: WaitPolicy) -> sqlx::Result<PostgresSession> {
        let mut session = from.acquire(wait, Liveness::Verified).await?;
        transaction::leave(&mut session).await?;
        Ok(session)
    }
}

fn connect_options(config: &Config) -> Result<PgConnectOptions, PoolError> {
    let url = |reason: String, advice| PoolError::Url { reason, advice };
    // The driver accepts every scheme, and connects to localhost if there is no host.
    if let Some(scheme) = scheme::of(&config.url)
        && !["postgres", "postgresql"].contains(&&*scheme)
    {
        return Err(url(
            format!("`{scheme}:` is not a scheme of `PostgresPool`"),
            "write postgres://user@host/database; for a SQLite file, declare the database with \
             `SqlitePool` or `UrlPool`",
        ));
    }
    if hosts(&config.url) > 1 {
        return Err(url(
            "it names several hosts, but the driver can connect to only one".into(),
            "name one host: a virtual address, a DNS name or a pooler that leads to the primary",
        ));
    }
    let options = PgConnectOptions::from_str(&config.url).map_err(|error| {
        url(
            error.to_string(),
            "write it as postgres://user:password@host:port/database",
        )
    })?;
    let options = match options.get_application_name() {
        None => options.application_name("rocket_tx"),
        Some(_) => options,
    };
    let options = match config.statement_cache {
        Some(statements) => options.statement_cache_capacity(statements),
        None => options,
    };
    Ok(options.log_slow_statements(log::LevelFilter::Debug, SLOW))
}

fn settings(options: &PgConnectOptions, set_by: SetBy, config: &Config) -> Settings {
    Settings::new(options.clone(), set_by, config.reset_sessions)
        .with_limit("statement_timeout", config.statement_timeout.0)
        .with_limit(
            "idle_in_transaction_session_timeout",
            config.idle_in_transaction_timeout.0,
        )
}

/// Counts the hosts of a URL. libpq separates several by commas:
/// `postgres://user@one:5432,two:5432/database`.
/// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS>
fn hosts(url: &str) -> usize {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    let in_authority = hosts.split(',').count();
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let in_query = query
        .split('&')
        .filter_map(|one| one.strip_prefix("host="))
        .map(|hosts| {
            hosts
                .replace("%2C", ",")
                .replace("%2c", ",")
                .split(',')
                .count()
        })
        .max();
    in_authority.max(in_query.unwrap_or(1))
}

/// Identifies the cluster by its start time and the database by its oid. The identity is the same
/// through `localhost`, `127.0.0.1`, a socket and a connection pooler.
async fn identity(connection: &mut PgConnection) -> sqlx::Result<Identity> {
    let name = sqlx::raw_sql(
        "SELECT format('postgres:%s:%s', extract(epoch FROM pg_postmaster_start_time()), oid) \
         FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(connection)
    .await?
    .try_get(0)?;
    Ok(Identity(name))
}

impl TransactionPool for PostgresPool {
    type Session = PostgresSession;

    async fn session(&self, access: Access, wait: WaitPolicy) -> sqlx::Result<PostgresSession> {
        match access {
            Access::ReadOnly => self.plain(&self.0.readers, wait).await,
            Access::ReadWrite => (self.0.sessions).acquire(wait, Liveness::Unchecked).await,
        }
    }

    fn connect_timeout(&self) -> Duration {
        self.0.sessions.wait()
    }

    async fn ready(&self) -> Result<(), NotReady> {
        self.0.probe.ready(self.settings()).await
    }

    async fn migrate(&self, migrations: &Migrations) -> Result<(), PoolError> {
        let Some(migrator) = &migrations.postgres else {
            return Ok(());
        };
        #[cfg(feature = "testing")]
        pool::migrate_template(&self.0.attachment, migrator).await?;
        // A separate session without a statement timeout: neither a migration nor the wait for
        // another process that runs it may be cut off. The advisory lock of a failed migration ends
        // with the session.
        // Without notices: at each launch, sqlx's `CREATE TABLE IF NOT EXISTS` would cause one.
        let unbounded = self
            .settings()
            .clone()
            .with("statement_timeout", "0")
            .with("client_min_messages", "warning");
        let open = || session::Live::open(&unbounded);
        let mut session = connect_with_retries(open, is_transient, self.connect_timeout())
            .await
            .map_err(OpenError::Database)?;
        let result = migrator
            .run_direct(None, &mut session.connection, false)
            .await;
        session::close_quietly(session).await;
        result.map_err(|source| PoolError::Migrate {
            source,
            remains: "the failed migration changed nothing, those before it remain applied",
        })
    }

    async fn close_connections(&self) {
        self.0.readers.close().await;
        self.0.sessions.close().await;
    }

    #[cfg(feature = "testing")]
    fn backend_of(url: &str) -> Option<Backend> {
        let scheme = scheme::of(url)?;
        matches!(&*scheme, "postgres" | "postgresql").then_some(Backend::Postgres)
    }

    fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn attachment(&self) -> &OnceLock<Attachment> {
        &self.0.attachment
    }
}

#[rocket::async_trait]
impl rocket_db_pools::Pool for PostgresPool {
    type Connection = PostgresSession;
    type Error = PoolError;

    async fn init(figment: &Figment) -> Result<Self, PoolError> {
        Self::connect(&figment.extract()?).await
    }

    async fn get(&self) -> Result<PostgresSession, PoolError> {
        let mut session = self.plain(&self.0.sessions, WaitPolicy::QUEUE).await?;
        transaction::unguard(&mut session).await?;
        Ok(session)
    }

    async fn close(&self) {
        pool::close(&self.0.attachment, self.close_connections()).await;
    }
}
