//! Templates and copies on Postgres.
//!
//! Advisory locks of the database that the URL names coordinate the test processes:
//!
//! - Each process holds the lock `(RUNS, n)` as long as it runs. The names of its databases contain
//!   `n`.
//! - A template is written under the exclusive lock `(TEMPLATES, hash)`, and copied under the shared
//!   one.
//!
//! A session with one of these locks executes statements only in the workshop's runtime.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::sync::{Mutex, OnceCell};

use super::drops;
use super::template::{self, Fingerprint};
use super::{TestDatabaseError, url, workshop};
use crate::db::postgres::connect_with_retries;
use crate::db::{OpenError, PoolError};

/// The first key of the advisory locks of test processes: `rtxr`.
pub(super) const RUNS: i32 = 0x7274_7872;

/// The first key of the advisory locks of templates: `rtxt`.
pub(super) const TEMPLATES: i32 = 0x7274_7874;

/// The beginning of the comment on a template. The time when it was created and the migrations that
/// it has follow.
const COMMENT: &str = "template of rocket_tx::testing";

/// A server, as this process uses it for its tests.
pub(super) struct Server {
    pub(super) options: PgConnectOptions,
    pub(super) admin: PgPool,
    /// The number of this process.
    run: u32,
    next: AtomicU32,
    /// The migrations that a template is known to have.
    known: parking_lot::Mutex<HashMap<String, HashSet<Fingerprint>>>,
    /// Keeps the lock of this process.
    _lock: PgConnection,
}

#[derive(Clone)]
pub(crate) struct Template {
    server: Arc<Server>,
    name: String,
}

/// A database that belongs to one test. Dropping it drops the database.
pub(super) struct OwnDatabase {
    server: Arc<Server>,
    pub(super) name: String,
}

impl Server {
    /// Returns the server of the URL. The first call connects, and drops the databases of processes
    /// that were killed.
    pub(super) async fn of(url: &str) -> Result<Arc<Self>, TestDatabaseError> {
        type Servers = HashMap<String, Arc<OnceCell<Arc<Server>>>>;
        static SERVERS: Mutex<Option<Servers>> = Mutex::const_new(None);

        let url = url.to_owned();
        let server = {
            let mut servers = SERVERS.lock().await;
            let servers = servers.get_or_insert_default();
            let address = url::with_database(&url, "");
            Arc::clone(servers.entry(address).or_default())
        };
        workshop::run(async move {
            let open = async || Self::open(&url).await.map(Arc::new);
            server.get_or_try_init(open).await.cloned()
        })
        .await
    }

    async fn open(url: &str) -> Result<Self, TestDatabaseError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| TestDatabaseError::Url(error.to_string()))?
            .application_name("rocket_tx testing")
            .options([
                ("default_transaction_read_only", "off"),
                ("lock_timeout", "0"),
                ("statement_timeout", "0"),
            ]);
        let (options, mut first) = connect(options).await?;
        let run = lock_run(&mut first).await?;
        // Servers before version 14 do not have this setting.
        let _unknown = first.execute("SET idle_session_timeout = 0").await;
        let admin = PgPoolOptions::new()
            .max_connections(4)
            .idle_timeout(Duration::from_secs(5))
            .acquire_timeout(Duration::from_secs(60))
            .connect_lazy_with(options.clone());
        let server = Self {
            options,
            admin,
            run,
            next: AtomicU32::new(0),
            known: parking_lot::Mutex::default(),
            _lock: first,
        };
        drops::sweep(&server).await?;
        Ok(server)
    }

    /// Returns the template of a database. `database` identifies the database in the service.
    pub(super) fn template(
        self: Arc<Self>,
        database: &impl Hash,
        migrations: Option<&Arc<Migrator>>,
    ) -> Template {
        // Processes exclude each other only by locks in the same database, and a role can copy
        // only its own templates.
        let options = &self.options;
        let database = (database, options.get_database(), options.get_username());
        Template {
            name: template::name(&database, migrations),
            server: self,
        }
    }

    fn explain(&self, error: sqlx::Error) -> TestDatabaseError {
        match code(&error).as_deref() {
            // insufficient_privilege
            Some("42501") => TestDatabaseError::NotAllowed {
                role: self.options.get_username().to_owned(),
                server: address(&self.options),
            },
            _ => error.into(),
        }
    }
}

/// Connects to the database of the URL, or to `postgres` if it does not exist.
async fn connect(
    options: PgConnectOptions,
) -> Result<(PgConnectOptions, PgConnection), TestDatabaseError> {
    let unreachable = |source| TestDatabaseError::Unreachable {
        server: address(&options),
        source,
    };
    match session(&options).await {
        Ok(connection) => Ok((options, connection)),
        // invalid_catalog_name: there is no such database.
        Err(error) if code(&error).as_deref() == Some("3D000") => {
            let options = options.clone().database("postgres");
            let connection = session(&options).await.map_err(unreachable)?;
            Ok((options, connection))
        }
        Err(error) => Err(unreachable(error)),
    }
}

/// Opens a session. Waits for a while if other tests use all connections of the server.
pub(super) async fn session(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    const LIMIT: Duration = Duration::from_secs(10);

    // too_many_connections, cannot_connect_now
    let is_full = |error: &sqlx::Error| {
        let code = code(error);
        matches!(code.as_deref(), Some("53300" | "57P03"))
    };
    connect_with_retries(|| options.connect(), is_full, LIMIT).await
}

fn address(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// Takes the lock of a number that no other process has.
async fn lock_run(connection: &mut PgConnection) -> sqlx::Result<u32> {
    loop {
        // Not negative as an `int4`.
        let run = fastrand::u32(..1 << 31);
        let is_free: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)")
            .bind(RUNS)
            .bind(run.cast_signed())
            .fetch_one(&mut *connection)
            .await?;
        if is_free {
            return Ok(run);
        }
    }
}

pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    error.code().map(|code| code.into_owned())
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl Template {
    pub(super) async fn migrate(&self, migrator: &Arc<Migrator>) -> Result<(), PoolError> {
        let (template, migrator) = (self.clone(), Arc::clone(migrator));
        workshop::run(async move { template.build(Some(&migrator)).await }).await
    }

    /// Creates a database for one test, with the tables of `migrator`.
    pub(super) async fn create_own(
        &self,
        migrator: Option<&Arc<Migrator>>,
    ) -> Result<OwnDatabase, TestDatabaseError> {
        let (template, migrator) = (self.clone(), migrator.cloned());
        workshop::run(async move {
            match template.copy(migrator.as_deref()).await {
                // The template is known from before, and another process has dropped it since.
                Err(error) if is_missing(&error) => {
                    template.server.known.lock().remove(&template.name);
                    template.copy(migrator.as_deref()).await
                }
                result => result,
            }
        })
        .await
    }

    async fn copy(&self, migrator: Option<&Migrator>) -> Result<OwnDatabase, TestDatabaseError> {
        let server = &self.server;
        let built = self.build(migrator).await;
        built.map_err(|error| match error {
            PoolError::Open(OpenError::Database(error)) => server.explain(error),
            error => error.into(),
        })?;
        let number = server.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("rocket_tx_test_{:08x}_{number}", server.run);
        let mut admin = server.admin.acquire().await?;
        self.lock(&mut admin, "pg_advisory_lock_shared").await?;
        let create = || AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE {}", self.name));
        let created = match admin.execute(create()).await {
            // object_in_use: somebody looks into the template, and nobody may while it is copied.
            Err(error) if code(&error).as_deref() == Some("55006") => {
                drops::end_sessions(&mut admin, &self.name).await?;
                admin.execute(create()).await
            }
            created => created,
        };
        self.unlock(&mut admin).await?;
        created.map_err(|error| server.explain(error))?;
        Ok(OwnDatabase {
            server: Arc::clone(server),
            name,
        })
    }

    /// Creates the template if it does not exist, and runs the migrations that it does not have.
    async fn build(&self, migrator: Option<&Migrator>) -> Result<(), PoolError> {
        let wanted = migrator.map(Fingerprint::of);
        if let Some(known) = self.server.known.lock().get(&self.name)
            && wanted.is_none_or(|wanted| known.contains(&wanted))
        {
            return Ok(());
        }
        let mut admin = self.server.admin.acquire().await.map_err(opening)?;
        self.lock(&mut admin, "pg_advisory_lock")
            .await
            .map_err(opening)?;
        let built = self.build_locked(&mut admin, migrator).await;
        if built.is_err() {
            // Half of a failed migration must not remain for the next test.
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
            let _reported_later = admin.execute(AssertSqlSafe(drop)).await;
        }
        self.unlock(&mut admin).await.map_err(opening)?;
        built
    }

    async fn build_locked(
        &self,
        admin: &mut PgConnection,
        migrator: Option<&Migrator>,
    ) -> Result<(), PoolError> {
        let mut has = match self.stored(admin).await.map_err(opening)? {
            Some(has) => has,
            None => {
                let create = format!("CREATE DATABASE {}", self.name);
                let created = admin.execute(AssertSqlSafe(create)).await;
                created.map_err(opening)?;
                self.store(admin, &HashSet::new()).await.map_err(opening)?;
                HashSet::new()
            }
        };
        if let Some(migrator) = migrator
            && has.insert(Fingerprint::of(migrator))
        {
            let options = self.server.options.clone().database(&self.name);
            let mut connection = session(&options).await.map_err(opening)?;
            let migrated = migrator.run_direct(None, &mut connection, false).await;
            let _closes_anyway = connection.close().await;
            migrated.map_err(|source| PoolError::Migrate {
                source,
                remains: "nothing remains of them in the databases of tests",
            })?;
            drops::end_sessions(admin, &self.name)
                .await
                .map_err(opening)?;
            self.store(admin, &has).await.map_err(opening)?;
        }
        self.server.known.lock().insert(self.name.clone(), has);
        Ok(())
    }

    /// Returns the migrations that the template has, or `None` if there is no template.
    async fn stored(&self, admin: &mut PgConnection) -> sqlx::Result<Option<HashSet<Fingerprint>>> {
        let comment: Option<Option<String>> = sqlx::query_scalar(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1",
        )
        .bind(&self.name)
        .fetch_optional(admin)
        .await?;
        Ok(comment.map(|comment| {
            let comment = comment.unwrap_or_default();
            let fingerprints = comment.split_once(": ").map_or("", |(_, after)| after);
            let parsed = fingerprints.split(' ').filter_map(|one| one.parse().ok());
            parsed.map(Fingerprint).collect()
        }))
    }

    async fn store(
        &self,
        admin: &mut PgConnection,
        has: &HashSet<Fingerprint>,
    ) -> sqlx::Result<()> {
        let has: Vec<String> = has.iter().map(|one| one.0.to_string()).collect();
        let comment = format!(
            "COMMENT ON DATABASE {} IS '{COMMENT}, {}: {}'",
            self.name,
            drops::seconds_since_1970(),
            has.join(" ")
        );
        admin.execute(AssertSqlSafe(comment)).await?;
        Ok(())
    }

    async fn lock(&self, admin: &mut PgConnection, function: &'static str) -> sqlx::Result<()> {
        let sql = format!("SELECT {function}({TEMPLATES}, {})", key_of(&self.name));
        admin.execute(AssertSqlSafe(sql)).await?;
        Ok(())
    }

    async fn unlock(&self, admin: &mut PgConnection) -> sqlx::Result<()> {
        admin.execute("SELECT pg_advisory_unlock_all()").await?;
        Ok(())
    }
}

/// Returns the second key of the advisory lock of a template.
pub(super) fn key_of(name: &str) -> i32 {
    template::short(template::hash(&name)).cast_signed()
}

fn opening(error: sqlx::Error) -> PoolError {
    OpenError::Database(error).into()
}

fn is_missing(error: &TestDatabaseError) -> bool {
    matches!(error, TestDatabaseError::Statement(error) if code(error).as_deref() == Some("3D000"))
}

impl Drop for OwnDatabase {
    fn drop(&mut self) {
        let (server, name) = (Arc::clone(&self.server), self.name.clone());
        let ended = workshop::run_blocking(async move {
            if let Err(error) = drops::drop_database(&server, &name).await {
                tracing::warn!(%error, name, "the database of a test was not dropped; a later run drops it");
            }
        });
        if !ended {
            let name = &self.name;
            tracing::warn!(name, "the database of a test was not dropped in time");
        }
    }
}
