//! Where the processes of the service are, and requests to them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rocket::serde::json::{Value, json};
use rocket::tokio;
use rocket::tokio::time::{sleep, timeout};

use super::checker::{Response, Operation};
use super::tokens::Seen;
use crate::support::{Databases, Http, Service, Starting};

/// How long a process may take to launch while everything goes wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// A stopped process stays so for longer than a lease lasts, now and then. Idle connections outlive
/// it, so that only a process that ends takes a connection away. `settle_timeout` is shorter than
/// some faults of the network last.
const SETTINGS: &[(&str, &str)] = &[
    ("ROCKET_LEASE_TTL", "1s"),
    ("ROCKET_LEASE_MAX_WAIT", "5s"),
    ("ROCKET_LEASE_SWEEP_INTERVAL", "1s"),
    ("ROCKET_SNAPSHOT_INTERVAL", "10"),
    ("ROCKET_SETTLE_TIMEOUT", "2s"),
    ("ROCKET_KEEP_ALIVE", "300"),
];

/// What a request that has to settle is given, as [`SETTINGS`] say.
pub const SETTLE: Duration = Duration::from_secs(2);

/// Where a process of the service is; another takes its place when it has ended.
pub struct Place {
    http: Mutex<Http>,
    /// Locked by whoever sends signals, or starts the next. It is not reaped otherwise.
    service: tokio::sync::Mutex<Service>,
    pub restarts: AtomicUsize,
    pub refusals: AtomicUsize,
    /// Requests that a process which goes on living did not answer.
    pub silences: AtomicUsize,
}

async fn launch(databases: &Arc<Databases>) -> Result<Service, String> {
    let told = databases.variable_with(r#"max_connections=8,connect_timeout="2s""#);
    let variables = [SETTINGS, &[("ROCKET_DATABASES", &*told)]].concat();
    let starting = Starting::new(Arc::clone(databases), &[], &variables);
    let launched = starting.launched().await;
    launched.map_err(|(status, log)| format!("{status}:\n{log}"))
}

impl Place {
    pub async fn new(databases: &Arc<Databases>) -> Self {
        let service = launch(databases).await.unwrap();
        Self {
            http: Mutex::new(service.http.clone()),
            service: tokio::sync::Mutex::new(service),
            restarts: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            silences: AtomicUsize::new(0),
        }
    }

    pub fn http(&self) -> Http {
        self.http.lock().unwrap().clone()
    }

    /// Sends one request, once; `None` if the connection ends without an answer. A process that
    /// cannot be connected to was never asked, and its successor is.
    pub async fn ask(&self, operation: &Operation, fault: &str) -> Option<Response> {
        loop {
            let http = self.http();
            let error = match request(&http, operation, fault).send().await {
                Ok(response) => return Some(answered(response).await),
                Err(error) => error,
            };
            if !self.revive(&http).await {
                println!("no answer from a process that lives: {operation:?}, {fault}: {error:?}");
                self.silences.fetch_add(1, SeqCst);
            }
            if !error.is_connect() {
                return None;
            }
        }
    }

    /// After a request without an answer: starts the service again, unless it lives or another
    /// client has done so. Says whether the process that was asked has ended.
    pub async fn revive(&self, asked: &Http) -> bool {
        let mut service = self.service.lock().await;
        if service.http.base != asked.base {
            return true;
        }
        let ended = timeout(Duration::from_secs(2), service.ended());
        if ended.await.is_err() {
            return false;
        }
        let ended = Instant::now();
        loop {
            match launch(&service.databases).await {
                Ok(next) => {
                    *self.http.lock().unwrap() = next.http.clone();
                    *service = next;
                    self.restarts.fetch_add(1, SeqCst);
                    return true;
                }
                // The database may be out of reach; the other process may be stopped while it writes.
                Err(why) => {
                    self.refusals.fetch_add(1, SeqCst);
                    let waited = ended.elapsed();
                    assert!(
                        waited < PATIENCE,
                        "no launch in {waited:.1?}; the last: {why}"
                    );
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Looks at the leases all the time.
    pub async fn watch(&self, started: Instant, done: &AtomicBool, seen: &Mutex<Seen>) {
        while !done.load(SeqCst) {
            let asked = started.elapsed();
            let request = self.http().request("GET /leases");
            let look = async {
                let response = request.send().await?.error_for_status()?;
                response.json::<Value>().await
            };
            match timeout(Duration::from_secs(5), look).await {
                Ok(Ok(response)) => {
                    let rows = response["leases"].as_array().unwrap();
                    seen.lock().unwrap().look(rows, asked, started.elapsed());
                }
                // It is being restarted, or its database is out of reach.
                Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn request(http: &Http, operation: &Operation, fault: &str) -> reqwest::RequestBuilder {
    let on = |stream: &String, what| format!("POST /aggregates/todos/{stream}/{what}");
    let (what, body) = match operation {
        Operation::Todo { title } => ("POST /todos".to_owned(), json!({ "title": title })),
        Operation::Share { id, .. } => (format!("POST /todos/{id}/share"), Value::Null),
        Operation::Create { stream } => (
            "POST /aggregates/todos".to_owned(),
            json!({ "id": stream, "user_id": format!("who made {stream}"), "task": "first" }),
        ),
        Operation::Rename { stream, task } => (on(stream, "rename"), json!({ "task": task })),
        Operation::Complete { stream } => (on(stream, "complete"), Value::Null),
    };
    let request = http
        .request(&what)
        .header("X-Fault", fault)
        .timeout(Duration::from_secs(60));
    if body.is_null() {
        return request;
    }
    request
        .header("Content-Type", "application/json")
        .body(body.to_string())
}

/// The headers alone tell the outcome; the body may be cut short by a process that ends.
async fn answered(response: reqwest::Response) -> Response {
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

/// Kills or stops one of the processes, time and again. Says how often.
pub async fn kill_and_stop(places: &[Place; 2], seed: u64, done: &AtomicBool) -> (usize, usize) {
    let mut rng = Rng::with_seed(seed);
    let (mut kills, mut stops) = (0, 0);
    while !done.load(SeqCst) {
        sleep(Duration::from_millis(rng.u64(300..2_000))).await;
        let service = places[rng.usize(..2)].service.lock().await;
        let pause = Duration::from_millis(rng.u64(20..1_300));
        if rng.u8(..3) == 0 {
            service.signal("KILL");
            kills += 1;
        } else {
            service.signal("STOP");
            sleep(pause).await;
            service.signal("CONT");
            stops += 1;
        }
    }
    (kills, stops)
}
