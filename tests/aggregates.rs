//! Event-sourced aggregates: in requests, on their own, and written by many processes.

mod contract;
mod edges;
mod faults;
mod processes;
mod repositories;
mod requests;

use rocket::serde::json::{Value, json};
use rocket::tokio::task::JoinHandle;
use serde::{Deserialize, Serialize};

use rocket_tx_aggregates::aggregate::{Entity, Event};

use crate::support::{Databases, Http, HttpResponse, In};

/// What tests of the library change.
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

/// The reference service's `/aggregates/todos`.
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

/// Renames in a task of its own: it has the lease for 9 s, and its process will not last so long.
/// The task says whether it got no answer.
pub fn rename_that_is_lost(http: &Http, id: &str) -> JoinHandle<bool> {
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

/// All events of a todo, which must have no gaps.
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

/// Everything that an aggregate has left in the database.
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
