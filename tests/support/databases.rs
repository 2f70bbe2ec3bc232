//! Databases of one test's own, and a look at what is really stored in them.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Cluster, Proxy};
use rocket::figment::Figment;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, SqliteConnection};

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

/// `notes` is what tests write to; `pairs` holds rows whose partner is looked for by COMMIT.
const TABLES: &str = "\
    CREATE TABLE notes (text TEXT NOT NULL UNIQUE);
    CREATE TABLE pairs (
        id BIGINT PRIMARY KEY,
        partner BIGINT NOT NULL,
        CONSTRAINT pairs_have_a_partner
            FOREIGN KEY (partner) REFERENCES pairs (id) DEFERRABLE INITIALLY DEFERRED
    );";

/// Two empty databases. On SQLite they are two files of a folder that goes with them.
pub struct Databases {
    folder: tempfile::TempDir,
    pub backend: Backend,
    pub main: String,
    pub audit: String,
    /// What the service is told instead, if it is to go by way of a proxy.
    proxied: [Option<String>; 2],
}

impl Databases {
    pub async fn new(backend: Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (main, audit) = match backend {
            Backend::Sqlite => {
                let url = |name| format!("sqlite:{}", folder.path().join(name).display());
                (url("main.db"), url("audit.db"))
            }
            Backend::Postgres => (postgres_database().await, postgres_database().await),
        };
        Self {
            folder,
            backend,
            main,
            audit,
            proxied: [None, None],
        }
    }

    /// On a cluster of the test's own.
    pub async fn on_cluster(cluster: &Cluster) -> Self {
        let databases = Self {
            folder: tempfile::tempdir().unwrap(),
            backend: Backend::Postgres,
            main: cluster.create_database("main").await,
            audit: cluster.create_database("audit").await,
            proxied: [None, None],
        };
        databases.execute(In::Main, TABLES).await;
        databases.execute(In::Audit, TABLES).await;
        databases
    }

    /// With the tables `notes` and `pairs` in both.
    pub async fn with_tables(backend: Backend) -> Self {
        let databases = Self::new(backend).await;
        databases.execute(In::Main, TABLES).await;
        databases.execute(In::Audit, TABLES).await;
        databases
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn url(&self, database: In) -> &str {
        match database {
            In::Main => &self.main,
            In::Audit => &self.audit,
        }
    }

    /// Through a connection of its own, so that only what is committed is seen.
    pub async fn notes(&self, database: In) -> Vec<String> {
        self.texts(database, "SELECT text FROM notes ORDER BY text")
            .await
    }

    fn service_url(&self, database: In) -> &str {
        let proxied = self.proxied[database as usize].as_deref();
        proxied.unwrap_or(self.url(database))
    }

    /// The first column of what `sql` finds.
    pub async fn texts(&self, database: In, sql: &'static str) -> Vec<String> {
        match self.backend {
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

    /// The connection is closed when it returns: SQLite leaves no journal behind then.
    pub async fn execute(&self, database: In, sql: &'static str) {
        let sql = sqlx::raw_sql(sql);
        match self.backend {
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

    /// Empties the tables of both.
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

    /// Has the service reach `database` by way of a proxy; the test itself does not.
    pub async fn by_proxy(&mut self, database: In) -> Proxy {
        let proxy = Proxy::to(self.url(database)).await;
        let url = proxy.url(self.url(database));
        self.proxied[database as usize] = Some(url);
        proxy
    }

    /// Has the service reach `database` at another address; the test itself does not.
    pub fn reach_at(&mut self, database: In, url: String) {
        self.proxied[database as usize] = Some(url);
    }

    /// As `Rocket.toml` says it.
    pub fn figment(&self) -> Figment {
        Figment::from(rocket::Config::debug_default())
            .merge(("databases.main.url", self.service_url(In::Main)))
            .merge(("databases.audit.url", self.service_url(In::Audit)))
            .merge(("databases.main.max_connections", 4))
            .merge(("databases.audit.max_connections", 4))
    }

    /// As `ROCKET_DATABASES` says it, with the same settings for both.
    pub fn variable_with(&self, settings: &str) -> String {
        format!(
            r#"{{main={{url="{}",{settings}}},audit={{url="{}",{settings}}}}}"#,
            self.service_url(In::Main),
            self.service_url(In::Audit)
        )
    }
}

/// Makes an empty database in the cluster that `tests/run` starts.
async fn postgres_database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);

    let cluster = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL is not set; run tests/run, which starts a cluster");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("test_{}_{number}", std::process::id());
    let mut admin = PgConnection::connect(&cluster).await.unwrap();
    admin
        .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .await
        .unwrap();
    let (server, _) = cluster.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}
