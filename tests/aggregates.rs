//! Event-sourced aggregates: in requests, without requests, and written by several processes.

mod batches;
mod contract;
mod discarded;
mod edges;
mod faults;
mod processes;
mod released;
mod repositories;
mod requests;
mod trips;

use rocket::serde::json::{Value, json};
use rocket::tokio::task::JoinHandle;
use serde::{Deserialize, Serialize};

use rocket_tx_aggregates::aggregate::{Entity, Event};

use crate::support::{Databases, Http, HttpResponse, In};

/// The aggregate that tests of the library use.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counter {
    #[serde(skip)]
    entity: Entity,
    pub total: i64,
}

#[derive(Serialize, Deserialize)]
pub struct Added {
    pub number: i64,
}

impl Event<Counter> for Added {
    const NAME: &'static str = "added";

    fn apply(self, counter: &mut Counter) {
        counter.total += self.number;
    }
}

rocket_tx_aggregates::aggregate!(Counter as "counter", entity, [Added]);

/// Creates a todo in the reference service's `/aggregates/todos`.
pub async fn create(http: &Http, id: &str) {
    let body = json!({ "id": id, "user_id": "ann", "task": "first" }).to_string();
    let response = http.json("POST /aggregates/todos", &body).await;
    assert_eq!(response.status, 201, "{response:?}");
}

pub async fn rename(http: &Http, id: &str, task: &str, fault: &str) -> HttpResponse {
    let request = http
        .request(&format!("POST /aggregates/todos/{id}/rename"))
        .header("Content-Type", "application/json")
        .header("X-Fault", fault)
        .body(json!({ "task": task }).to_string());
    HttpResponse::of(request).await
}

/// Renames a todo in a separate task. The request holds the lease for 9 s, and the test ends the
/// service before that. The task returns `true` if there was no response.
pub fn rename_without_response(http: &Http, id: &str) -> JoinHandle<bool> {
    let request = http
        .request(&format!("POST /aggregates/todos/{id}/rename"))
        .header("Content-Type", "application/json")
        .header("X-Fault", "delay=9000@loaded")
        .body(json!({ "task": "lost" }).to_string());
    tokio::spawn(async move { request.send().await.is_err() })
}

pub async fn leases(http: &Http) -> Vec<Value> {
    let response = http.send("GET /leases").await;
    assert_eq!(response.status, 200, "{response:?}");
    response.json::<Value>()["leases"]
        .as_array()
        .unwrap()
        .clone()
}

/// Returns all events of a todo. Asserts that their sequence has no gaps.
pub async fn events(http: &Http, id: &str) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let path = format!(
            "GET /aggregates/todos/{id}/events?limit=200&after={}",
            all.len()
        );
        let response = http.send(&path).await;
        if response.status == 404 {
            return all;
        }
        let page: Vec<Value> = response.json();
        if page.is_empty() {
            return all;
        }
        for event in page {
            assert_eq!(event["sequence"], all.len() + 1, "{event}");
            all.push(event);
        }
    }
}

/// Returns all rows that aggregates have stored: events, snapshots and the list of todos.
pub async fn stored(databases: &Databases) -> Vec<String> {
    let mut all = Vec::new();
    for sql in [
        "SELECT stream || ' ' || sequence || ' ' || name || payload FROM aggregate_events ORDER BY stream, sequence",
        "SELECT stream || ' ' || sequence || state FROM aggregate_snapshots ORDER BY stream",
        "SELECT id || ' ' || task || ' ' || version FROM todo_list ORDER BY id",
    ] {
        all.extend(databases.texts(In::Main, sql).await);
    }
    all
}
