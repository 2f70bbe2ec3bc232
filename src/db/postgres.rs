//! Postgres: a pool for requests, and a read-only one beside it.

use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocket::figment::Figment;
use rocket::futures::StreamExt;
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _, Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use super::config::SLOW;
use super::postgres_sessions::{Fate, Need, PostgresSession, Sessions};
use super::{
    Access, BeginOptions, CommitError, Config, Durability, Error, Identity, Isolation, Link,
    Migrations, OpenError, Patience, Session, TransactionPool, pool,
};

type Manager = <Postgres as sqlx::Database>::TransactionManager;

/// Proves that COMMIT will mean COMMIT. The savepoint was made with BEGIN and lives as long as that
/// transaction:
///
/// - an aborted transaction cannot release it (25P02);
/// - nor can what stands outside one (25P01), or another, which the handler began or chained
///   (3B001);
/// - deferred constraints are checked now, and every later statement at once.
///
/// A setting that ends with the transaction would do as well, and spare the subtransaction, but
/// looking at it costs the server several times what a savepoint does.
const PREPARE: &str = "RELEASE rocket_tx; SAVEPOINT rocket_tx; SET CONSTRAINTS ALL IMMEDIATE";

/// The same proof and COMMIT in one simple query: the server stops at the first statement that
/// fails, so COMMIT, which checks deferred constraints by itself, is reached only if it holds.
const COMMIT: &str = "RELEASE rocket_tx; COMMIT";

/// Statements in [`COMMIT`]: when all of them were answered, it is committed.
const COMMIT_STATEMENTS: usize = 2;

/// A Postgres database: `max_connections` for requests, and as many read-only sessions.
#[derive(Clone)]
pub struct PostgresPool(Arc<Inner>);

struct Inner {
    sessions: Sessions,
    /// With `default_transaction_read_only`. A pool of its own: a session that was made read-only
    /// must never come back as one that writes.
    readers: Sessions,
    identity: Identity,
    link: OnceLock<Link>,
}

impl Session for PostgresSession {
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        self
    }

    fn connection_ref(&self) -> &PgConnection {
        self
    }

    async fn begin(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        let begin = match (options.isolation, options.access) {
            (Isolation::Default, Access::ReadWrite) => "BEGIN; SAVEPOINT rocket_tx",
            (Isolation::RepeatableRead, Access::ReadWrite) => {
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SAVEPOINT rocket_tx"
            }
            (Isolation::Serializable, Access::ReadWrite) => {
                "BEGIN ISOLATION LEVEL SERIALIZABLE; SAVEPOINT rocket_tx"
            }
            (Isolation::Default, Access::ReadOnly) => "BEGIN READ ONLY; SAVEPOINT rocket_tx",
            (Isolation::RepeatableRead, Access::ReadOnly) => {
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SAVEPOINT rocket_tx"
            }
            (Isolation::Serializable, Access::ReadOnly) => {
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SAVEPOINT rocket_tx"
            }
        };
        // sqlx counts how deep in transactions a session is, so that `begin` on it makes a savepoint
        // within ours. Only its own COMMIT would count back, and that one cannot carry the proof;
        // so a session of ours stays counted as one deep, in a transaction or not.
        match Manager::get_transaction_depth(self) {
            0 => Manager::begin(self, Some(begin.into_sql_str())).await,
            _ => run(self, begin).await.1,
        }
    }

    async fn prepare(&mut self) -> Result<(), CommitError> {
        match run(self, PREPARE).await {
            (_, Ok(())) => Ok(()),
            // Nothing was committed, whatever became of the connection.
            (_, Err(error)) => Err(refusal(error)),
        }
    }

    async fn commit(&mut self) -> Result<Durability, CommitError> {
        match run(self, COMMIT).await {
            (_, Ok(())) => Ok(Durability::reached()),
            // The server answered COMMIT, and the session ended only then.
            (COMMIT_STATEMENTS, Err(_)) => {
                self.come_back(Fate::Closed);
                Ok(Durability::reached())
            }
            (_, Err(error @ sqlx::Error::Database(_))) => Err(refusal(error)),
            (_, Err(error)) => Err(CommitError::Unknown(error)),
        }
    }

    async fn rollback(&mut self) -> sqlx::Result<()> {
        let result = run(self, "ROLLBACK").await.1;
        // Something went wrong in this request, perhaps with the session.
        self.come_back(Fate::Checked);
        result
    }

    fn start_rollback(&mut self) {
        // Deeper, a handler has forgotten a savepoint, and sqlx would roll back to it alone.
        match Manager::get_transaction_depth(self) {
            1 => {
                Manager::start_rollback(self);
                self.come_back(Fate::Checked);
            }
            _ => self.come_back(Fate::Closed),
        }
    }

    fn vouched_for(&mut self, well: &Arc<AtomicBool>) {
        PostgresSession::vouched_for(self, well);
    }

    fn close_on_drop(&mut self) {
        self.come_back(Fate::Closed);
    }
}

/// Runs a simple query; says how many of its statements were answered.
async fn run(connection: &mut PgConnection, sql: &'static str) -> (usize, sqlx::Result<()>) {
    let mut answers = sqlx::raw_sql(sql).fetch_many(connection);
    let mut done = 0;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(sqlx::Either::Left(_)) => done += 1,
            Ok(sqlx::Either::Right(_row)) => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

fn refusal(error: sqlx::Error) -> CommitError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("25P02") => CommitError::Aborted,
        Some("25P01" | "3B001") => CommitError::Ended { undone: false },
        _ => CommitError::Refused(error),
    }
}

impl PostgresPool {
    pub(super) async fn connect(config: &Config) -> Result<Self, Error> {
        let options = PgConnectOptions::from_str(&config.url).map_err(|error| Error::Url {
            reason: error.to_string(),
            advice: "write it as postgres://user:password@host:port/database",
        })?;
        let options = match options.get_application_name() {
            None => options.application_name("rocket_tx"),
            Some(_) => options,
        };
        let options = options.log_slow_statements(log::LevelFilter::Debug, SLOW);
        let options = options.options([
            ("statement_timeout", millis(config.statement_timeout.0)),
            (
                "idle_in_transaction_session_timeout",
                millis(config.idle_in_transaction_timeout.0),
            ),
        ]);
        let sessions = pool_options(config).connect_with(options.clone()).await;
        let sessions = match sessions {
            // The pool tries until it is out of time, and then says only that.
            Err(sqlx::Error::PoolTimedOut) => Err(unreachable(&options, config).await),
            result => result,
        }
        .map_err(OpenError::Database)?;
        let identity = identity(&sessions).await.map_err(OpenError::Database)?;
        let readers = pool_options(config)
            .min_connections(0)
            .connect_lazy_with(options.options([("default_transaction_read_only", "on")]));
        Ok(Self(Arc::new(Inner {
            sessions: Sessions::new(sessions),
            readers: Sessions::new(readers),
            identity,
            link: OnceLock::new(),
        })))
    }
}

impl PostgresPool {
    /// How its sessions for requests are opened.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        (*self.0.sessions.pool().connect_options()).clone()
    }

    /// A session for statements that no BEGIN of ours precedes: a `Read`'s, or those of
    /// rocket_db_pools' own guard. sqlx counts no transaction on it.
    async fn plain(&self, from: &Sessions, patience: Patience) -> sqlx::Result<PostgresSession> {
        let mut session = from.acquire(patience, Need::Alive).await?;
        // Whether its statements met an error that tells of a broken session is not known here.
        session.come_back(Fate::Checked);
        if session.is_in_transaction() {
            run(&mut session, "BEGIN").await.1?;
            Manager::rollback(&mut *session).await?;
        }
        Ok(session)
    }
}

/// Why there is no connection to be had, asked of the server itself.
async fn unreachable(options: &PgConnectOptions, config: &Config) -> sqlx::Error {
    const ANSWER: Duration = Duration::from_secs(1);

    match tokio::time::timeout(ANSWER, options.connect()).await {
        Ok(Ok(_)) => sqlx::Error::PoolTimedOut,
        Ok(Err(error)) => error,
        Err(_) => sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer within {:?}", config.connect_timeout.0),
        )),
    }
}

fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn pool_options(config: &Config) -> PoolOptions<Postgres> {
    PoolOptions::new()
        .max_connections(config.max_connections.max(1))
        .min_connections(config.min_connections)
        .acquire_timeout(config.connect_timeout.0)
        .idle_timeout(
            config
                .idle_timeout
                .map_or(Duration::from_secs(600), |timeout| timeout.0),
        )
        // The pool asks a session that comes back whether it still answers, and sends what is
        // queued on it. Deeper in transactions than ours, a handler has forgotten a savepoint.
        .after_release(|connection: &mut PgConnection, _| {
            Box::pin(async move { Ok(Manager::get_transaction_depth(connection) <= 1) })
        })
}

/// The cluster by its start and the database by its oid: `localhost` and `127.0.0.1`, a socket and
/// a connection pooler all lead to the same.
async fn identity(pool: &sqlx::PgPool) -> sqlx::Result<Identity> {
    let name: String = sqlx::query_scalar(
        "SELECT format('postgres:%s:%s', extract(epoch FROM pg_postmaster_start_time()), oid) \
         FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(pool)
    .await?;
    Ok(Identity(name))
}

impl TransactionPool for PostgresPool {
    type Session = PostgresSession;

    async fn session(&self, access: Access, patience: Patience) -> sqlx::Result<PostgresSession> {
        match access {
            Access::ReadOnly => self.plain(&self.0.readers, patience).await,
            Access::ReadWrite => self.0.sessions.acquire(patience, Need::Any).await,
        }
    }

    async fn migrate(&self, migrations: &Migrations) -> Result<(), Error> {
        let Some(migrator) = &migrations.postgres else {
            return Ok(());
        };
        // A session of its own: what bounds the statements of requests is no bound for a migration,
        // nor for waiting until another process has done it; and the advisory lock of a migration
        // that failed ends with its session.
        let options = self.0.sessions.pool().connect_options();
        let options = (*options).clone().options([("statement_timeout", "0")]);
        let mut session = options.connect().await.map_err(OpenError::Database)?;
        let result = migrator.run_direct(None, &mut session, false).await;
        if let Err(error) = session.close().await {
            tracing::debug!(%error, "the session of the migrations did not end well");
        }
        result.map_err(|source| Error::Migrate {
            source,
            remains: "it left nothing behind, those before it stay",
        })
    }

    fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn link(&self) -> &OnceLock<Link> {
        &self.0.link
    }
}

#[rocket::async_trait]
impl rocket_db_pools::Pool for PostgresPool {
    type Connection = PostgresSession;
    type Error = Error;

    async fn init(figment: &Figment) -> Result<Self, Error> {
        Self::connect(&figment.extract()?).await
    }

    async fn get(&self) -> Result<PostgresSession, Error> {
        Ok(self.plain(&self.0.sessions, Patience::Wait).await?)
    }

    async fn close(&self) {
        pool::close(&self.0.link, async {
            self.0.readers.close().await;
            self.0.sessions.close().await;
        })
        .await;
    }
}
