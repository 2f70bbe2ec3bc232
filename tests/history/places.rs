//! The processes of the service, and requests to them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rocket::serde::json::{Value, json};
use rocket::tokio;
use rocket::tokio::time::{sleep, timeout};

use super::checker::{Operation, Response};
use super::tokens::Seen;
use crate::support::{Databases, Http, Service, Starting};

/// How long a process may take to launch while faults happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// Some stops of a process last longer than a lease. `keep_alive` is longer than every stop, so
/// that connections close only when their process ends. Some faults of the network last longer than
/// `settle_timeout`.
const SETTINGS: &[(&str, &str)] = &[
    ("ROCKET_LEASE_TTL", "1s"),
    ("ROCKET_LEASE_MAX_WAIT", "5s"),
    ("ROCKET_LEASE_SWEEP_INTERVAL", "1s"),
    ("ROCKET_SNAPSHOT_INTERVAL", "10"),
    ("ROCKET_SETTLE_TIMEOUT", "2s"),
    ("ROCKET_KEEP_ALIVE", "300"),
];

/// The `settle_timeout` in [`SETTINGS`].
pub const SETTLE: Duration = Duration::from_secs(2);

/// The place of one service process. When the process has ended, another one is started.
pub struct Place {
    http: Mutex<Http>,
    /// Locked to send signals and to start the next process. Only with this lock is an ended
    /// process waited for, so a signal cannot reach another process that has the same id.
    service: tokio::sync::Mutex<Service>,
    /// Environment variables, besides [`SETTINGS`].
    variables: Vec<(&'static str, &'static str)>,
    pub restarts: AtomicUsize,
    /// Launches that failed.
    pub refusals: AtomicUsize,
    /// Requests that got no response although their process kept running.
    pub silences: AtomicUsize,
}

async fn launch(databases: &Arc<Databases>, variables: &[(&str, &str)]) -> Result<Service, String> {
    let settings = databases.variable_with(r#"max_connections=8,connect_timeout="2s""#);
    let variables = [SETTINGS, &[("ROCKET_DATABASES", &*settings)], variables].concat();
    let starting = Starting::new(Arc::clone(databases), &[], &variables);
    let launched = starting.launched().await;
    launched.map_err(|(status, log)| format!("{status}:\n{log}"))
}

impl Place {
    pub async fn new(databases: &Arc<Databases>) -> Self {
        Self::with(databases, &[]).await
    }

    /// Launches the service with further environment variables, also when it is started again.
    pub async fn with(
        databases: &Arc<Databases>,
        variables: &[(&'static str, &'static str)],
    ) -> Self {
        let service = launch(databases, variables).await.unwrap();
        Self {
            http: Mutex::new(service.http.clone()),
            service: tokio::sync::Mutex::new(service),
            variables: variables.to_vec(),
            restarts: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            silences: AtomicUsize::new(0),
        }
    }

    pub fn http(&self) -> Http {
        self.http.lock().unwrap().clone()
    }

    /// Sends one request. Returns `None` if the connection ends without a response. If connecting
    /// fails, no process has received the request, so it is sent to the next process.
    pub async fn send(&self, operation: &Operation, fault: &str) -> Option<Response> {
        loop {
            let http = self.http();
            let error = match request(&http, operation, fault).send().await {
                Ok(response) => return Some(read(response).await),
                Err(error) => error,
            };
            if !self.revive(&http).await {
                println!("no response from a running process: {operation:?}, {fault}: {error:?}");
                self.silences.fetch_add(1, SeqCst);
            }
            if !error.is_connect() {
                return None;
            }
        }
    }

    /// Handles a request to `address` without a response. Starts the service again if its process
    /// has ended, unless another client has done so. Returns whether the process at `address` has
    /// ended.
    pub async fn revive(&self, address: &Http) -> bool {
        let mut service = self.service.lock().await;
        if service.http.base != address.base {
            return true;
        }
        let ended = timeout(Duration::from_secs(2), service.ended());
        if ended.await.is_err() {
            return false;
        }
        let ended = Instant::now();
        loop {
            match launch(&service.databases, &self.variables).await {
                Ok(next) => {
                    *self.http.lock().unwrap() = next.http.clone();
                    *service = next;
                    self.restarts.fetch_add(1, SeqCst);
                    return true;
                }
                // The database may be unreachable, or the other process is stopped during a write.
                Err(error) => {
                    self.refusals.fetch_add(1, SeqCst);
                    let waited = ended.elapsed();
                    assert!(
                        waited < PATIENCE,
                        "no launch in {waited:.1?}; the last error: {error}"
                    );
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Kills the process. The next request without a response starts it again.
    pub async fn kill(&self) {
        self.service.lock().await.signal("KILL");
    }

    /// Stops the process for a while.
    pub async fn pause(&self, time: Duration) {
        let service = self.service.lock().await;
        service.signal("STOP");
        sleep(time).await;
        service.signal("CONT");
    }

    /// Polls `GET /leases` and records the leases, until `done`.
    pub async fn watch(&self, started: Instant, done: &AtomicBool, seen: &Mutex<Seen>) {
        while !done.load(SeqCst) {
            let sent = started.elapsed();
            let request = self.http().request("GET /leases");
            let poll = async {
                let response = request.send().await?.error_for_status()?;
                response.json::<Value>().await
            };
            match timeout(Duration::from_secs(5), poll).await {
                Ok(Ok(response)) => {
                    let rows = response["leases"].as_array().unwrap();
                    seen.lock().unwrap().record(rows, sent, started.elapsed());
                }
                // The process is being restarted, or its database is unreachable.
                Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn request(http: &Http, operation: &Operation, fault: &str) -> reqwest::RequestBuilder {
    let on = |stream: &String, action| format!("POST /aggregates/todos/{stream}/{action}");
    let (line, body) = match operation {
        Operation::Todo { title } => ("POST /todos".to_owned(), json!({ "title": title })),
        Operation::Share { id, .. } => (format!("POST /todos/{id}/share"), Value::Null),
        Operation::Create { stream } => (
            "POST /aggregates/todos".to_owned(),
            json!({ "id": stream, "user_id": format!("owner of {stream}"), "task": "first" }),
        ),
        Operation::Rename { stream, task } => (on(stream, "rename"), json!({ "task": task })),
        Operation::Complete { stream } => (on(stream, "complete"), Value::Null),
    };
    let request = http
        .request(&line)
        .header("X-Fault", fault)
        .timeout(Duration::from_secs(60));
    // The entry in `audit` holds the URL of the todo, which begins with this name. So the entry names
    // its request, also if the client got no response.
    let request = match operation {
        Operation::Todo { title } => request.header("Host", title),
        _ => request,
    };
    if body.is_null() {
        return request;
    }
    request
        .header("Content-Type", "application/json")
        .body(body.to_string())
}

/// Reads a response. The body may be incomplete if the process ends, but the outcome is in the
/// headers.
async fn read(response: reqwest::Response) -> Response {
    let header = |name| Some(response.headers().get(name)?.to_str().unwrap().to_owned());
    let (outcome, request_id) = (header("Transaction-Outcome"), header("X-Request-Id"));
    Response {
        status: response.status().as_u16(),
        outcome,
        request_id,
        id: match response.json::<Value>().await {
            Ok(body) => body["id"].as_i64(),
            Err(_) => None,
        },
    }
}

/// Kills or stops one of the processes repeatedly, until `done`. Returns the numbers of kills and
/// stops.
pub async fn kill_and_stop(places: &[Place; 2], seed: u64, done: &AtomicBool) -> (usize, usize) {
    let mut rng = Rng::with_seed(seed);
    let (mut kills, mut stops) = (0, 0);
    while !done.load(SeqCst) {
        sleep(Duration::from_millis(rng.u64(300..2_000))).await;
        let place = &places[rng.usize(..2)];
        let pause = Duration::from_millis(rng.u64(20..1_300));
        if rng.u8(..3) == 0 {
            place.kill().await;
            kills += 1;
        } else {
            place.pause(pause).await;
            stops += 1;
        }
    }
    (kills, stops)
}
