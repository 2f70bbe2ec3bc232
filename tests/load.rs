//! Load: many clients, few connections, and a fault in one third of the requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::serde::json::Value;
use rocket::tokio::task::JoinSet;

use crate::support::{Backend, Databases, Http, HttpResponse, In, Service, eventually};

const CLIENTS: usize = 200;
const LOAD: Duration = Duration::from_secs(10);

/// The faults that every third request gets, in turn.
const FAULTS: [&str; 8] = [
    "respond=502",
    "panic",
    "swallow",
    "commit",
    "doom",
    "leak=20",
    "delay=5,respond=500",
    "respond=404",
];

/// The responses that one client has received.
#[derive(Default)]
struct Received {
    /// Title and request id of every success.
    kept: Vec<(String, String)>,
    /// Number of responses by `Transaction-Outcome`.
    outcomes: BTreeMap<String, u64>,
}

async fn client(http: Http, number: usize, until: Instant) -> Received {
    let mut received = Received::default();
    for turn in 0.. {
        if Instant::now() > until {
            break;
        }
        let title = format!("{number}-{turn}");
        let fault = match (number + turn) % 3 {
            0 => FAULTS[(number + turn / 3) % FAULTS.len()],
            1 => "",
            _ => "delay=1",
        };
        let request = http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("X-Fault", fault)
            .body(format!(r#"{{"title": "{title}"}}"#));
        let response = HttpResponse::of(request).await;
        let id = response.header("x-request-id").unwrap().to_owned();
        let outcome = response
            .outcome()
            .expect("every request here has tried to write");
        *received.outcomes.entry(outcome.to_owned()).or_default() += 1;
        match response.status {
            201 => {
                assert_eq!(outcome, "committed");
                assert!(fault.is_empty() || fault == "delay=1", "{fault} is a 201");
                received.kept.push((title, id));
            }
            status => {
                assert_eq!(outcome, "rolled-back", "{status}");
                // A request without a fault may exceed a wait limit (503), but must not fail
                // otherwise.
                assert!(!fault.is_empty() || status == 503, "{}", response.body);
            }
        }
    }
    received
}

async fn under_load_every_success_is_stored_and_nothing_else(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let pools = databases.variable_with("max_connections=4");
    let variables = [("ROCKET_DATABASES", pools.as_str())];
    let service = Service::on(Arc::clone(&databases), &variables).await;

    let until = Instant::now() + LOAD;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(service.http.clone(), number, until));
    }
    let received = clients.join_all().await;

    let kept = received
        .iter()
        .flat_map(|client| client.kept.iter().cloned());
    let (titles, ids): (BTreeSet<String>, BTreeSet<String>) = kept.unzip();
    assert!(titles.len() > CLIENTS, "only {} successes", titles.len());
    let stored = databases.texts(In::Main, "SELECT title FROM todos").await;
    assert_eq!(stored.len(), titles.len());
    assert_eq!(BTreeSet::from_iter(stored), titles);
    let lines = databases
        .texts(In::Audit, "SELECT request_id FROM audit")
        .await;
    assert_eq!(lines.len(), ids.len());
    assert_eq!(BTreeSet::from_iter(lines), ids);

    eventually("nothing is outstanding", async || {
        let registry: Value = service.get("/registry").await.json();
        registry["outstanding"] == Value::Array(Vec::new())
    })
    .await;
    let registry: Value = service.get("/registry").await.json();
    for (counter, outcome) in [
        ("committed", "committed"),
        ("rolled_back", "rolled-back"),
        ("partial", "partial"),
        ("unknown", "unknown"),
    ] {
        let responses: u64 = received
            .iter()
            .map(|client| client.outcomes.get(outcome).copied().unwrap_or(0))
            .sum();
        assert_eq!(registry["settled"][counter], responses, "{outcome}");
    }

    // No connection was lost: more concurrent requests than connections all succeed.
    let mut writers = JoinSet::new();
    for _ in 0..16 {
        let http = service.http.clone();
        writers.spawn(async move {
            let request = http
                .request("POST /todos")
                .header("Content-Type", "application/json")
                .header("X-Fault", "delay=20")
                .body(r#"{"title": "afterwards"}"#);
            HttpResponse::of(request).await.status
        });
    }
    assert_eq!(writers.join_all().await, [201; 16]);
    service.stop().await;
}

on_each_backend!(under_load_every_success_is_stored_and_nothing_else);
