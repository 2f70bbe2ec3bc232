//! Requests with many leases, in several processes of the real binary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::futures::future::join_all;
use rocket::serde::json::json;
use rocket::tokio::{spawn, task::JoinHandle};

use super::{create, events, leases};
use crate::support::{Backend, Databases, Http, Service, eventually};

const NUMBER: usize = 20;

fn ids() -> Vec<String> {
    (0..NUMBER)
        .map(|number| format!("todo {number:02}"))
        .collect()
}

/// Starts three processes on the same databases, and creates the todos.
async fn three(backend: Backend) -> [Service; 3] {
    let settings = [("ROCKET_LEASE_TTL", "2s"), ("ROCKET_LEASE_MAX_WAIT", "60s")];
    let databases = Arc::new(Databases::new(backend).await);
    let start = || Service::on(Arc::clone(&databases), &settings);
    let services = [start().await, start().await, start().await];
    join_all(ids().iter().map(|id| create(&services[0].http, id))).await;
    services
}

/// Completes all todos in a separate task, which returns the status of the response, if there was
/// one.
fn complete_all(http: &Http, fault: &str) -> JoinHandle<Option<u16>> {
    let request = http
        .request("POST /aggregates/todos/complete")
        .header("Content-Type", "application/json")
        .header("X-Fault", fault)
        .body(json!({ "ids": ids() }).to_string());
    spawn(async move { Some(request.send().await.ok()?.status().as_u16()) })
}

/// The holder of all leases is killed, and so is a process that waits for them. A third process
/// takes over all leases when they have expired.
async fn the_leases_of_a_killed_batch_are_taken_over(backend: Backend) {
    let [holder, waiter, other] = three(backend).await;
    let started = Instant::now();
    let lost = complete_all(&holder.http, "delay=30000@loaded");
    eventually("all todos are leased", async || {
        leases(&other.http).await.len() == NUMBER
    })
    .await;
    let waiting = complete_all(&waiter.http, "");
    eventually("another process waits", async || {
        let leases = leases(&other.http).await;
        leases.iter().any(|lease| lease["wanted"] == true)
    })
    .await;
    holder.signal("KILL");
    waiter.signal("KILL");
    let status = complete_all(&other.http, "").await.unwrap();
    let took = started.elapsed();
    assert_eq!(status, Some(200));
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(lost.await.unwrap().is_none() && waiting.await.unwrap().is_none());
    for id in ids() {
        assert_eq!(events(&other.http, &id).await.len(), 2, "{id}");
    }
    eventually("no lease remains", async || {
        leases(&other.http).await.is_empty()
    })
    .await;
}

/// The holder of all leases is stopped for longer than they last.
async fn a_stopped_batch_is_refused_when_it_continues(backend: Backend) {
    let [stopped, other, _idle] = three(backend).await;
    // The delay follows the load of each todo.
    let late = complete_all(&stopped.http, "delay=250@loaded");
    eventually("all todos are leased", async || {
        leases(&other.http).await.len() == NUMBER
    })
    .await;
    stopped.signal("STOP");
    let status = complete_all(&other.http, "").await.unwrap();
    assert_eq!(status, Some(200));
    stopped.signal("CONT");
    assert_eq!(late.await.unwrap(), Some(409));
    for id in ids() {
        assert_eq!(events(&other.http, &id).await.len(), 2, "{id}");
    }
    eventually("no lease remains", async || {
        leases(&other.http).await.is_empty()
    })
    .await;
}

on_each_backend!(
    the_leases_of_a_killed_batch_are_taken_over,
    a_stopped_batch_is_refused_when_it_continues,
);
