//! The reference service as a process.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rocket::serde::json::Value;

use super::{Backend, Databases, Http, HttpResponse};

/// The real binary on a free port, with fault injection enabled. Dropping it kills the process.
pub struct Service {
    process: Process,
    pub http: Http,
    pub databases: Arc<Databases>,
}

/// The real binary before its launch has succeeded or failed. Dropping it kills the process.
pub struct Starting {
    process: Process,
    databases: Arc<Databases>,
}

/// A process and its log file.
struct Process {
    child: Child,
    /// The child is a wrapper program, which may run the service as a child of its own.
    is_wrapped: bool,
    log: PathBuf,
}

impl Service {
    pub async fn start(backend: Backend) -> Self {
        let databases = Databases::new(backend).await;
        Self::on(Arc::new(databases), &[]).await
    }

    /// Starts the service on databases that other processes may use too, with environment
    /// variables.
    pub async fn on(databases: Arc<Databases>, variables: &[(&str, &str)]) -> Self {
        match Starting::new(databases, &[], variables).launched().await {
            Ok(service) => service,
            Err((status, log)) => panic!("the service ended with {status}:\n{log}"),
        }
    }

    /// Starts a service that must refuse to launch. Returns its exit status and its log.
    pub async fn refused(
        databases: &Databases,
        variables: &[(&str, &str)],
    ) -> (ExitStatus, String) {
        let mut process = Process::spawn(databases, &[], variables);
        match process.launched().await {
            Ok(_) => panic!("the service launched:\n{}", process.log()),
            Err(status) => (status, process.log()),
        }
    }

    pub async fn get(&self, path: &str) -> HttpResponse {
        self.http.send(&format!("GET {path}")).await
    }

    /// Returns the number of clients that listen to `/registry/events`.
    pub async fn listeners(&self) -> u64 {
        let registry: Value = self.get("/registry").await.json();
        registry["listeners"].as_u64().unwrap()
    }

    /// Creates a todo. `fault` is the header `X-Fault`; it may be empty.
    pub async fn new_todo(&self, title: &str, fault: &str) -> HttpResponse {
        let request = self
            .http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("X-Fault", fault)
            .body(format!(r#"{{"title":"{title}"}}"#));
        HttpResponse::of(request).await
    }

    /// Returns a request that creates a todo. The audit trail names the todo by its title.
    pub fn titled(&self, title: &str) -> reqwest::RequestBuilder {
        self.http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("Host", title)
            .body(format!(r#"{{"title":"{title}"}}"#))
    }

    /// Creates a todo with a fault that ends the process before the response. The audit trail names
    /// the todo by its title.
    pub async fn crash(&mut self, title: &str, fault: &str) {
        let request = self.titled(title).header("X-Fault", fault);
        assert!(
            request.send().await.is_err(),
            "{fault}: the process responded instead of crashing"
        );
        let status = self.ended().await;
        assert!(status.signal().is_some(), "{fault}: {status}");
    }

    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// Sends a signal by its name: `TERM`, `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits up to 40 s for the process to end.
    pub async fn ended(&mut self) -> ExitStatus {
        for _ in 0..4_000 {
            if let Some(status) = self.process.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the service did not end in 40 s:\n{}", self.log());
    }

    /// Sends SIGTERM and asserts that the exit code is 0.
    pub async fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.log());
    }

    /// Returns the log of the process.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Starting {
    /// Starts the service, through a wrapper program if `wrapper` is the command line of one. The
    /// wrapper must run the command line that follows its own. Variables with an empty value are
    /// removed from the environment.
    pub fn new(databases: Arc<Databases>, wrapper: &[&str], variables: &[(&str, &str)]) -> Self {
        Self {
            process: Process::spawn(&databases, wrapper, variables),
            databases,
        }
    }

    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// Returns the log of the process so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for the launch. If it fails, returns the exit status and the log.
    pub async fn launched(mut self) -> Result<Service, (ExitStatus, String)> {
        match self.process.launched().await {
            Ok(port) => Ok(Service {
                process: self.process,
                http: Http::new(port),
                databases: self.databases,
            }),
            Err(status) => Err((status, self.process.log())),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_wrapped {
            // Otherwise the service would outlive its wrapper.
            let parent = self.child.id().to_string();
            let killed = Command::new("pkill")
                .args(["-KILL", "-P", &parent])
                .status();
            assert!(killed.is_ok(), "the program `pkill` (procps) was not found");
        }
        let _already_gone = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() || std::env::var_os("TEST_LOG").is_some() {
            println!("--- log of process {}\n{}", self.child.id(), self.log());
        }
    }
}

impl Process {
    fn spawn(databases: &Databases, wrapper: &[&str], variables: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = databases.folder().join(format!("{number}.log"));
        let line = [wrapper, &[env!("CARGO_BIN_EXE_rocket_tx_service")]].concat();
        let mut command = Command::new(line[0]);
        command
            .args(&line[1..])
            .env(
                "ROCKET_DATABASES",
                databases.variable_with("max_connections=8"),
            )
            .env("ROCKET_PORT", "0")
            .env("ROCKET_FAULTS", "true")
            .env("RUST_BACKTRACE", "0")
            .env("NO_COLOR", "1")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        for (name, value) in variables {
            match *value {
                "" => command.env_remove(name),
                value => command.env(name, value),
            };
        }
        let child = command.spawn().unwrap();
        Self {
            child,
            is_wrapped: !wrapper.is_empty(),
            log,
        }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for the launch and returns the port from the log. Returns the exit status if the
    /// process ends instead.
    async fn launched(&mut self) -> Result<u16, ExitStatus> {
        for _ in 0..6_000 {
            let log = self.log();
            let address = log.split("launched from http://127.0.0.1:").nth(1);
            // The number is complete once another character follows it.
            let port = address.and_then(|rest| rest.split_once(|c: char| !c.is_ascii_digit()));
            if let Some((port, _)) = port {
                return Ok(port.parse().unwrap());
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "the service neither launched nor ended in 60 s:\n{}",
            self.log()
        );
    }
}
