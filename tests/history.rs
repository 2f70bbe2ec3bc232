//! A randomised history: many clients, faults and kills drawn at random, and then one question: can
//! what is stored be explained by what the clients were told?
//!
//! A seed reproduces the operations and faults of each client and of the chaos, not their
//! scheduling: a second run of the same seed may go another way. The long form:
//!
//! ```text
//! HISTORY_STEPS=2000 HISTORY_SEED=7 tests/run history
//! ```

mod checker;

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rocket::futures::future::{join, join_all};
use rocket::serde::json::{Value, json};
use rocket::tokio;
use rocket::tokio::time::{sleep, timeout};

use self::checker::{Answered, Entry, Operation, Stored, check, summary};
use crate::aggregates::{create, leases};
use crate::support::{Backend, Databases, Http, In, Service, Starting, eventually_or};

const CLIENTS: u64 = 8;

/// A stopped process stays so for longer than a lease lasts, now and then. Idle connections outlive
/// it, so that only a process that ends takes a connection away.
const SETTINGS: &[(&str, &str)] = &[
    ("ROCKET_LEASE_TTL", "1s"),
    ("ROCKET_LEASE_MAX_WAIT", "5s"),
    ("ROCKET_LEASE_SWEEP_INTERVAL", "1s"),
    ("ROCKET_KEEP_ALIVE", "300"),
];

const FAULTS: &[&str] = &[
    "respond=502",
    "panic",
    "doom",
    "commit",
    "swallow",
    "leak=50",
    "delay=20",
    "disconnect",
    "downstream=502",
    "expire-lease",
];

const CRASHES: &[&str] = &[
    "crash=before-commit",
    "crash=between-commits",
    "crash=after-commit",
];

/// Half of the requests have no fault; one of a hundred ends its process.
fn draw_fault(rng: &mut Rng) -> &'static str {
    match rng.u8(..100) {
        0..50 => "",
        50..99 => FAULTS[rng.usize(..FAULTS.len())],
        _ => CRASHES[rng.usize(..CRASHES.len())],
    }
}

fn draw_operation(rng: &mut Rng, unique: String) -> Operation {
    match rng.u8(..2) {
        0 => Operation::Todo { title: unique },
        _ => Operation::Rename {
            stream: format!("h{}", rng.u8(..3)),
            task: unique,
        },
    }
}

fn variable<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, and is {text:?}")),
        Err(_) => default,
    }
}

/// Where a process of the service is; another takes its place when it has ended.
struct Place {
    http: Mutex<Http>,
    /// Locked by whoever sends signals, or starts the next. It is not reaped otherwise.
    service: tokio::sync::Mutex<Service>,
    restarts: AtomicUsize,
    refusals: AtomicUsize,
    /// Requests that a process which goes on living did not answer.
    silences: AtomicUsize,
}

impl Place {
    async fn new(databases: &Arc<Databases>) -> Self {
        let service = Service::on(Arc::clone(databases), SETTINGS).await;
        Self {
            http: Mutex::new(service.http.clone()),
            service: tokio::sync::Mutex::new(service),
            restarts: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            silences: AtomicUsize::new(0),
        }
    }

    fn http(&self) -> Http {
        self.http.lock().unwrap().clone()
    }

    /// Sends one request, once; `None` if the connection ends without an answer. A process that
    /// cannot be connected to was never asked, and its successor is.
    async fn ask(&self, operation: &Operation, fault: &str) -> Option<Answered> {
        loop {
            let http = self.http();
            let error = match request(&http, operation, fault).send().await {
                Ok(answer) => return Some(answered(&answer)),
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
    async fn revive(&self, asked: &Http) -> bool {
        let mut service = self.service.lock().await;
        if service.http.base != asked.base {
            return true;
        }
        let ended = timeout(Duration::from_secs(2), service.ended());
        if ended.await.is_err() {
            return false;
        }
        for _ in 0..20 {
            let databases = Arc::clone(&service.databases);
            match Starting::new(databases, &[], SETTINGS).launched().await {
                Ok(next) => {
                    *self.http.lock().unwrap() = next.http.clone();
                    *service = next;
                    self.restarts.fetch_add(1, SeqCst);
                    return true;
                }
                // The other process may be stopped while it writes.
                Err((status, log)) => {
                    println!("a launch was refused, {status}:\n{log}");
                    self.refusals.fetch_add(1, SeqCst);
                }
            }
        }
        panic!("the service does not launch any more");
    }
}

fn request(http: &Http, operation: &Operation, fault: &str) -> reqwest::RequestBuilder {
    let (what, body) = match operation {
        Operation::Todo { title } => ("POST /todos".to_owned(), json!({ "title": title })),
        Operation::Rename { stream, task } => (
            format!("POST /aggregates/todos/{stream}/rename"),
            json!({ "task": task }),
        ),
    };
    http.request(&what)
        .header("Content-Type", "application/json")
        .header("X-Fault", fault)
        .body(body.to_string())
        .timeout(Duration::from_secs(60))
}

/// The headers alone tell the outcome.
fn answered(answer: &reqwest::Response) -> Answered {
    let header = |name| Some(answer.headers().get(name)?.to_str().unwrap().to_owned());
    Answered {
        status: answer.status().as_u16(),
        outcome: header("Transaction-Outcome"),
        request_id: header("X-Request-Id"),
    }
}

async fn client(places: &[Place; 2], seed: u64, number: u64, steps: u64) -> Vec<Entry> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(number));
    let mut history = Vec::new();
    for step in 0..steps {
        let operation = draw_operation(&mut rng, format!("{number}-{step}"));
        let fault = draw_fault(&mut rng);
        let place = &places[rng.usize(..2)];
        let answered = place.ask(&operation, fault).await;
        history.push(Entry {
            operation,
            fault,
            answered,
        });
    }
    history
}

/// Kills or stops one of the processes, time and again.
async fn chaos(places: &[Place; 2], seed: u64, done: &AtomicBool) -> (usize, usize) {
    let mut rng = Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(CLIENTS));
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

async fn stored(databases: &Databases) -> Stored {
    let events = "SELECT stream || ' ' || sequence || ' ' || payload FROM aggregate_events \
                  ORDER BY stream, sequence";
    let events = databases.texts(In::Main, events).await;
    let events = events.iter().map(|event| {
        let mut parts = event.splitn(3, ' ');
        let mut part = || parts.next().unwrap();
        let stream = part().trim_start_matches("todo:").to_owned();
        let sequence = part().parse().unwrap();
        let payload: Value = rocket::serde::json::from_str(part()).unwrap();
        let task = payload["task"].as_str().unwrap().to_owned();
        (stream, sequence, task)
    });
    Stored {
        events: events.collect(),
        titles: databases.texts(In::Main, "SELECT title FROM todos").await,
        audited: databases
            .texts(
                In::Audit,
                "SELECT request_id FROM audit WHERE action <> 'aggregate created'",
            )
            .await,
    }
}

async fn what_is_stored_is_what_was_told(backend: Backend) {
    let (seed, steps) = (
        variable("HISTORY_SEED", 20_261_125),
        variable("HISTORY_STEPS", 30),
    );
    println!("{backend:?}: HISTORY_SEED={seed} HISTORY_STEPS={steps}");
    let started = Instant::now();
    let databases = Arc::new(Databases::new(backend).await);
    let places = &[Place::new(&databases).await, Place::new(&databases).await];
    for number in 0..3 {
        create(&places[0].http(), &format!("h{number}")).await;
    }

    let done = AtomicBool::new(false);
    let clients = async {
        let clients = (0..CLIENTS).map(|number| client(places, seed, number, steps));
        let history: Vec<Entry> = join_all(clients).await.into_iter().flatten().collect();
        done.store(true, SeqCst);
        history
    };
    let (history, (kills, stops)) = join(clients, chaos(places, seed, &done)).await;
    let took = started.elapsed();

    for place in places {
        let http = place.http();
        if http.request("GET /registry").send().await.is_err() {
            place.revive(&http).await;
        }
    }
    let mut held = Vec::new();
    eventually_or("the leases are free", &mut held, async |held| {
        *held = leases(&places[0].http()).await;
        held.retain(|lease| lease["token"] != "expire-lease");
        held.is_empty()
    })
    .await;
    let settled = started.elapsed() - took;

    let count = |counter: fn(&Place) -> &AtomicUsize| -> usize {
        places.iter().map(|place| counter(place).load(SeqCst)).sum()
    };
    println!(
        "{backend:?}: {} requests in {took:.1?}, and {settled:.1?} until nothing was leased: {:?}; {kills} kills, {stops} stops, {} restarts, {} launches refused, {} silences",
        history.len(),
        summary(&history),
        count(|place| &place.restarts),
        count(|place| &place.refusals),
        count(|place| &place.silences),
    );
    let stored = stored(&databases).await;
    let found = check(&history, &stored);
    assert!(
        found.is_empty(),
        "{backend:?}, HISTORY_SEED={seed} HISTORY_STEPS={steps}, {} found:\n{}",
        found.len(),
        found.join("\n")
    );
}

on_each_backend!(what_is_stored_is_what_was_told);
