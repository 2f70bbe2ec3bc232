//! One helper for all tests: real databases, a real process, a real socket.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rocket::serde::json::serde_json;
use serde::de::DeserializeOwned;
use sqlx::{Connection, Executor};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// Databases of one test's own.
pub struct Databases {
    folder: tempfile::TempDir,
    pub main: String,
    pub audit: String,
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
            main,
            audit,
        }
    }

    /// As `ROCKET_DATABASES` says it.
    fn config(&self) -> String {
        format!(
            r#"{{main={{url="{}"}},audit={{url="{}"}}}}"#,
            self.main, self.audit
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
    let mut admin = sqlx::PgConnection::connect(&cluster).await.unwrap();
    admin
        .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .await
        .unwrap();
    let (server, _) = cluster.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// The real binary on a free port. Dropping it kills it.
pub struct Service {
    process: Child,
    base: String,
    http: reqwest::Client,
    _databases: Databases,
}

impl Service {
    pub async fn start(backend: Backend) -> Self {
        let databases = Databases::new(backend).await;
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let log = std::fs::File::create(databases.folder.path().join("log")).unwrap();
        let log = if std::env::var_os("TEST_LOG").is_some() {
            Stdio::inherit()
        } else {
            log.into()
        };
        let process = Command::new(env!("CARGO_BIN_EXE_rocket_tx"))
            .env("ROCKET_DATABASES", databases.config())
            .env("ROCKET_PORT", port.to_string())
            .env("ROCKET_FAULTS", "true")
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        // reqwest brings no TLS provider here; loopback needs none, but its builder does.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let service = Self {
            process,
            base: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::new(),
            _databases: databases,
        };
        service.ready().await;
        service
    }

    async fn ready(&self) {
        for _ in 0..300 {
            if self
                .http
                .get(format!("{}/readyz", self.base))
                .send()
                .await
                .is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the service did not become ready in 15 s");
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.http.get(format!("{}{path}", self.base))).await
    }

    pub async fn post(&self, path: &str, body: &str, fault: Option<&str>) -> Answer {
        let mut request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("Content-Type", "application/json")
            .body(body.to_owned());
        if let Some(fault) = fault {
            request = request.header("X-Fault", fault);
        }
        Answer::of(request).await
    }

    /// SIGTERM, and the exit code must be 0.
    pub async fn stop(mut self) {
        let id = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        for _ in 0..600 {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0));
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the service did not exit in 30 s");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
    }
}

pub struct Answer {
    pub status: u16,
    headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self {
            status,
            headers,
            body: answer.text().await.unwrap(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap()
    }
}
