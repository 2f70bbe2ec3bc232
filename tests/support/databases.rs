//! The databases of one test, and functions that read what is stored in them.

use std::path::{Path, PathBuf};

use super::{Cluster, Proxy};
use rocket::figment::Figment;
use rocket_db_pools::Database;
use rocket_tx::db::{self, BeginOptions, Migrations, UrlPool};
use rocket_tx::testing;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, SqlStr, SqliteConnection};

#[derive(Database)]
#[database("main")]
pub struct Main(UrlPool);

#[derive(Database)]
#[database("audit")]
pub struct Audit(UrlPool);

/// Begins a transaction that writes, outside a request.
pub const WRITES: BeginOptions = BeginOptions::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// One of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum In {
    Main,
    Audit,
}

/// Tests write to `notes`. The rows of `pairs` have a deferred foreign key, checked by COMMIT.
const TABLES: &str = "\
    CREATE TABLE notes (text TEXT NOT NULL UNIQUE);
    CREATE TABLE pairs (
        id BIGINT PRIMARY KEY,
        partner BIGINT NOT NULL,
        CONSTRAINT pairs_have_a_partner
            FOREIGN KEY (partner) REFERENCES pairs (id) DEFERRABLE INITIALLY DEFERRED
    );";

/// Creates the tables `notes` and `pairs`. Its own table of migrations leaves the usual one to tests.
fn tables() -> Migrations {
    let migrator = || {
        let sql = SqlStr::from_static(TABLES);
        let tables = Migration::new(1, "tables".into(), MigrationType::Simple, sql, false);
        let mut migrator = Migrator::with_migrations(vec![tables]);
        migrator.dangerous_set_table_name("_tables_of_tests");
        migrator
    };
    Migrations::new().sqlite(migrator()).postgres(migrator())
}

/// Two databases, not necessarily of one backend. They are removed when this is dropped.
pub struct Databases {
    folder: tempfile::TempDir,
    pub main: String,
    pub audit: String,
    /// The URLs that the service is configured with, where they differ: those of a proxy.
    proxied: [Option<String>; 2],
    /// Removes the databases that were created for the test.
    _own: Option<testing::Databases>,
}

impl Databases {
    /// Creates two empty databases. Those on SQLite are files that do not exist yet, in the
    /// [`folder`](Self::folder).
    pub async fn new(backend: Backend) -> Self {
        Self::on(backend, backend).await
    }

    /// Like [`new`](Self::new), with a backend for each database.
    pub async fn on(main: Backend, audit: Backend) -> Self {
        let mut rocket = rocket::custom(configured_figment(main, audit));
        let (main, audit) = (main == Backend::Postgres, audit == Backend::Postgres);
        if main {
            rocket = rocket.attach(db::init::<Main>());
        }
        if audit {
            rocket = rocket.attach(db::init::<Audit>());
        }
        let own = testing::databases(rocket).await;
        let main = main.then(|| own.url::<Main>());
        let audit = audit.then(|| own.url::<Audit>());
        Self {
            _own: Some(own),
            ..Self::at(main, audit)
        }
    }

    /// Creates two databases with the tables `notes` and `pairs`.
    pub async fn with_tables(backend: Backend) -> Self {
        Self::with_tables_on(backend, backend).await
    }

    /// Like [`with_tables`](Self::with_tables), with a backend for each database.
    pub async fn with_tables_on(main: Backend, audit: Backend) -> Self {
        let rocket = rocket::custom(configured_figment(main, audit))
            .attach(db::init::<Main>().migrations(tables()))
            .attach(db::init::<Audit>().migrations(tables()));
        let own = testing::databases(rocket).await;
        let (main, audit) = (own.url::<Main>(), own.url::<Audit>());
        Self {
            _own: Some(own),
            ..Self::at(Some(main), Some(audit))
        }
    }

    /// Two databases at these URLs. A database without a URL is a new SQLite file.
    pub fn at(main: Option<String>, audit: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| format!("sqlite:{}", folder.path().join(name).display());
        Self {
            main: main.unwrap_or_else(|| file("main.db")),
            audit: audit.unwrap_or_else(|| file("audit.db")),
            folder,
            proxied: [None, None],
            _own: None,
        }
    }

    /// Creates both databases, with their tables, on a cluster that belongs to the test.
    pub async fn on_cluster(cluster: &Cluster) -> Self {
        let main = cluster.create_database("main").await;
        let audit = cluster.create_database("audit").await;
        let databases = Self::at(Some(main), Some(audit));
        databases.execute(In::Main, TABLES).await;
        databases.execute(In::Audit, TABLES).await;
        databases
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the path of a database on SQLite.
    pub fn file(&self, database: In) -> PathBuf {
        self.url(database).strip_prefix("sqlite:").unwrap().into()
    }

    pub fn url(&self, database: In) -> &str {
        match database {
            In::Main => &self.main,
            In::Audit => &self.audit,
        }
    }

    pub fn backend(&self, database: In) -> Backend {
        match self.url(database).starts_with("sqlite:") {
            true => Backend::Sqlite,
            false => Backend::Postgres,
        }
    }

    /// Reads the notes through a separate connection, which sees only committed rows.
    pub async fn notes(&self, database: In) -> Vec<String> {
        self.texts(database, "SELECT text FROM notes ORDER BY text")
            .await
    }

    fn service_url(&self, database: In) -> &str {
        let proxied = self.proxied[database as usize].as_deref();
        proxied.unwrap_or(self.url(database))
    }

    /// Returns the first column of each row of the query `sql`.
    pub async fn texts(&self, database: In, sql: &'static str) -> Vec<String> {
        match self.backend(database) {
            Backend::Sqlite => {
                let mut connection = self.sqlite(database).await;
                sqlx::query_scalar(sql)
                    .fetch_all(&mut connection)
                    .await
                    .unwrap()
            }
            Backend::Postgres => {
                let mut connection = self.postgres(database).await;
                sqlx::query_scalar(sql)
                    .fetch_all(&mut connection)
                    .await
                    .unwrap()
            }
        }
    }

    /// Runs `sql` and closes the connection before it returns, so that SQLite leaves no journal.
    pub async fn execute(&self, database: In, sql: &'static str) {
        let sql = sqlx::raw_sql(sql);
        match self.backend(database) {
            Backend::Sqlite => {
                let mut connection = self.sqlite(database).await;
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
            Backend::Postgres => {
                let mut connection = self.postgres(database).await;
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Empties the tables of both databases.
    pub async fn empty(&self) {
        for database in [In::Main, In::Audit] {
            self.execute(database, "DELETE FROM notes; DELETE FROM pairs")
                .await;
        }
    }

    pub async fn sqlite(&self, database: In) -> SqliteConnection {
        let options: SqliteConnectOptions = self.url(database).parse().unwrap();
        options.create_if_missing(true).connect().await.unwrap()
    }

    pub async fn postgres(&self, database: In) -> PgConnection {
        PgConnection::connect(self.url(database)).await.unwrap()
    }

    /// Makes the service reach `database` through a proxy. The test itself connects directly.
    pub async fn by_proxy(&mut self, database: In) -> Proxy {
        let proxy = Proxy::to(self.url(database)).await;
        let url = proxy.url(self.url(database));
        self.proxied[database as usize] = Some(url);
        proxy
    }

    /// Makes the service reach `database` at another address. The test itself connects directly.
    pub fn reach_at(&mut self, database: In, url: String) {
        self.proxied[database as usize] = Some(url);
    }

    /// The configuration of both databases, as from `Rocket.toml`.
    pub fn figment(&self) -> Figment {
        Figment::from(rocket::Config::debug_default())
            .merge(("databases.main.url", self.service_url(In::Main)))
            .merge(("databases.audit.url", self.service_url(In::Audit)))
            .merge(("databases.main.max_connections", 4))
            .merge(("databases.audit.max_connections", 4))
    }

    /// The value of the variable `ROCKET_DATABASES`, with the same settings for both databases.
    pub fn variable_with(&self, settings: &str) -> String {
        format!(
            r#"{{main={{url="{}",{settings}}},audit={{url="{}",{settings}}}}}"#,
            self.service_url(In::Main),
            self.service_url(In::Audit)
        )
    }
}

/// Returns the URL of a database that does not exist, on the backend of a test. In tests, services
/// are configured with it, and `rocket_tx::testing` gives each test databases of its own.
pub fn configured(backend: Backend, name: &str) -> String {
    match backend {
        Backend::Sqlite => format!("sqlite:{}/{name}.db", nowhere()),
        Backend::Postgres => {
            let server = std::env::var("TEST_POSTGRES_URL")
                .expect("TEST_POSTGRES_URL is not set; run tests/run, which starts a cluster");
            let (server, _) = server.rsplit_once('/').unwrap();
            format!("{server}/{name}_does_not_exist")
        }
    }
}

/// A folder that does not exist.
pub fn nowhere() -> String {
    format!("{}/does_not_exist", env!("CARGO_TARGET_TMPDIR"))
}

fn configured_figment(main: Backend, audit: Backend) -> Figment {
    Figment::from(rocket::Config::debug_default())
        .merge(("log_level", "off"))
        .merge(("databases.main.url", configured(main, "main")))
        .merge(("databases.audit.url", configured(audit, "audit")))
}
