//! The reference service as a process.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Answer, Backend, Databases, Http};

/// The real binary on a free port, with faults on. Dropping it kills it.
pub struct Service {
    process: Child,
    pub http: Http,
    pub databases: Arc<Databases>,
    log: PathBuf,
}

impl Service {
    pub async fn start(backend: Backend) -> Self {
        let databases = Databases::new(backend).await;
        Self::on(Arc::new(databases), &[]).await
    }

    /// On databases that may be shared with other processes, with variables of its environment.
    pub async fn on(databases: Arc<Databases>, variables: &[(&str, &str)]) -> Self {
        let (mut process, log) = spawn(&databases, variables);
        let port = match launched(&mut process, &log).await {
            Ok(port) => port,
            Err(status) => panic!("the service ended with {status}:\n{}", read(&log)),
        };
        Self {
            process,
            http: Http::new(port),
            databases,
            log,
        }
    }

    /// Starts a service that must refuse to; returns its exit status and what it said.
    pub async fn refused(
        databases: &Databases,
        variables: &[(&str, &str)],
    ) -> (ExitStatus, String) {
        let (mut process, log) = spawn(databases, variables);
        let ended = launched(&mut process, &log).await;
        let _already_gone = process.kill();
        match ended {
            Ok(_) => panic!("the service launched:\n{}", read(&log)),
            Err(status) => (status, read(&log)),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.http.send(&format!("GET {path}")).await
    }

    /// Creates a todo, with a fault or an empty string.
    pub async fn new_todo(&self, title: &str, fault: &str) -> Answer {
        let request = self
            .http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("X-Fault", fault)
            .body(format!(r#"{{"title":"{title}"}}"#));
        Answer::of(request).await
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal by its name: `TERM`, `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the process to end, 40 s at most.
    pub async fn ended(&mut self) -> ExitStatus {
        for _ in 0..4_000 {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the service did not end in 40 s:\n{}", self.log());
    }

    /// SIGTERM, and the exit code must be 0.
    pub async fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.log());
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        read(&self.log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() || std::env::var_os("TEST_LOG").is_some() {
            println!("--- log of process {}\n{}", self.id(), self.log());
        }
    }
}

fn spawn(databases: &Databases, variables: &[(&str, &str)]) -> (Child, PathBuf) {
    static NEXT: AtomicU32 = AtomicU32::new(0);

    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let log = databases.folder().join(format!("{number}.log"));
    let process = Command::new(env!("CARGO_BIN_EXE_rocket_tx"))
        .env(
            "ROCKET_DATABASES",
            databases.variable_with("max_connections=8"),
        )
        .env("ROCKET_PORT", "0")
        .env("ROCKET_FAULTS", "true")
        .env("RUST_BACKTRACE", "0")
        .env("NO_COLOR", "1")
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    (process, log)
}

fn read(log: &PathBuf) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

/// The port that the service says it has launched on, or the status that it ended with.
async fn launched(process: &mut Child, log: &PathBuf) -> Result<u16, ExitStatus> {
    for _ in 0..6_000 {
        let said = read(log);
        let address = said.split("launched from http://127.0.0.1:").nth(1);
        if let Some((port, _)) = address.and_then(|rest| rest.split_once('\n')) {
            return Ok(port.trim().parse().unwrap());
        }
        if let Some(status) = process.try_wait().unwrap() {
            return Err(status);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _already_gone = process.kill();
    panic!(
        "the service neither launched nor ended in 60 s:\n{}",
        read(log)
    );
}
