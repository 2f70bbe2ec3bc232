//! Several processes of the real binary write the same aggregates.

use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rocket::futures::future::{join, join_all};
use rocket::serde::json::{Value, json};
use rocket_db_pools::Pool;
use rocket_tx::db::UrlPool;
use rocket_tx_aggregates::lock::{Hold, UrlLockManager};

use super::{create, events, leases, rename, rename_without_response};
use crate::history::variable;
use crate::support::{Backend, Databases, Http, Service, Starting, eventually};

const MS: Duration = Duration::from_millis(1);

/// Starts several processes on the same databases.
async fn processes(backend: Backend, number: usize, settings: &[(&str, &str)]) -> Vec<Service> {
    let databases = Arc::new(Databases::new(backend).await);
    let starting = (0..number).map(|_| Service::on(Arc::clone(&databases), settings));
    join_all(starting).await
}

async fn eight_processes_lose_and_repeat_nothing(backend: Backend) {
    const RENAMES: usize = 50;

    let services = processes(backend, 8, &[("ROCKET_LEASE_MAX_WAIT", "30s")]).await;
    create(&services[0].http, "shared").await;
    let work = async |process: usize| {
        let http = &services[process].http;
        let renames = async {
            for number in 0..RENAMES {
                let task = format!("{process}/{number}");
                let response = rename(http, "shared", &task, "").await;
                assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
            }
        };
        let completions = async {
            for number in 0..RENAMES / 5 {
                let id = format!("own {process} {number}");
                create(http, &id).await;
                let path = format!("POST /aggregates/todos/own%20{process}%20{number}/complete");
                let response = http.send(&path).await;
                assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
            }
        };
        join(renames, completions).await;
    };
    join_all((0..8).map(work)).await;

    let http = &services[0].http;
    let stored = events(http, "shared").await;
    let tasks: BTreeSet<String> = stored[1..]
        .iter()
        .map(|event| event["payload"]["task"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((stored.len(), tasks.len()), (8 * RENAMES + 1, 8 * RENAMES));
    for process in 0..8 {
        assert_eq!(events(http, &format!("own%20{process}%209")).await.len(), 2);
    }
    eventually("no lease remains", async || leases(http).await.is_empty()).await;
}

/// A process is stopped while it holds only a lease. The lease expires and another process takes
/// over.
async fn a_stopped_holder_is_refused_when_it_continues(backend: Backend) {
    let settings = [("ROCKET_LEASE_TTL", "2s"), ("ROCKET_LEASE_MAX_WAIT", "60s")];
    let services = processes(backend, 2, &settings).await;
    let [stopped, other] = &services[..] else {
        panic!("two processes were started");
    };
    create(&other.http, "milk").await;
    let http = stopped.http.clone();
    let late =
        tokio::spawn(async move { rename(&http, "milk", "late", "delay=3000@loaded").await });
    eventually("the todo is leased", async || {
        !leases(&other.http).await.is_empty()
    })
    .await;
    stopped.signal("STOP");
    let stopped_number = leases(&other.http).await[0]["fencing_token"].as_i64();

    let response = rename(&other.http, "milk", "in time", "").await;
    assert_eq!(response.summary(), (200, Some("committed")));
    // Another request holds the lease when the stopped process continues.
    let http = other.http.clone();
    let holding =
        tokio::spawn(async move { rename(&http, "milk", "holding", "delay=8000@loaded").await });
    let mut held = Vec::new();
    eventually("the todo is leased again", async || {
        held = leases(&other.http).await;
        !held.is_empty()
    })
    .await;
    assert!(held[0]["fencing_token"].as_i64() > stopped_number);
    stopped.signal("CONT");
    let late = late.await.unwrap();
    assert_eq!(late.summary(), (409, Some("rolled-back")), "{late:?}");
    // The new holder's lease is untouched.
    let now = leases(&other.http).await;
    assert_eq!(now[0]["token"], held[0]["token"], "{now:?}");
    assert_eq!(holding.await.unwrap().summary(), (200, Some("committed")));
    let tasks: Vec<_> = events(&other.http, "milk").await;
    let tasks: Vec<_> = tasks
        .iter()
        .map(|event| &event["payload"]["task"])
        .collect();
    assert_eq!(tasks, ["first", "in time", "holding"]);
}

/// The lease is taken over when it has expired, and not before.
async fn the_lease_of_a_killed_process_is_taken_over(backend: Backend) {
    let settings = [("ROCKET_LEASE_TTL", "2s"), ("ROCKET_LEASE_MAX_WAIT", "60s")];
    let mut services = processes(backend, 2, &settings).await;
    let other = services.pop().unwrap();
    let killed = services.pop().unwrap();
    create(&other.http, "milk").await;
    let started = Instant::now();
    let lost = rename_without_response(&killed.http, "milk");
    eventually("the todo is leased", async || {
        !leases(&other.http).await.is_empty()
    })
    .await;
    killed.signal("KILL");
    let response = rename(&other.http, "milk", "next", "").await;
    let took = started.elapsed();
    assert_eq!(response.summary(), (200, Some("committed")));
    assert!(lost.await.unwrap());
    assert!((2_000 * MS..30_000 * MS).contains(&took), "{took:?}");
    let stored = events(&other.http, "milk").await;
    assert_eq!(stored.len(), 2);
}

/// 16 clients of each of two processes constantly request the same lease. A wait is measured in
/// handovers: how many other clients had the lease since the client had it last.
async fn waits_for_a_lease_are_bounded_and_fair(backend: Backend) {
    const CLIENTS: usize = 32;

    let target: u64 = variable("LEASE_RENAMES", 1_500);
    let services = processes(backend, 2, &[("ROCKET_LEASE_MAX_WAIT", "60s")]).await;
    create(&services[0].http, "milk").await;
    let newest = AtomicU64::new(1);
    let client = async |number: usize| {
        let http = &services[number % 2].http;
        let mut turns = vec![1];
        while newest.load(Ordering::Relaxed) < target {
            let response = rename(http, "milk", "again", "").await;
            assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
            let version = response.json::<Value>()["version"].as_u64().unwrap();
            newest.fetch_max(version, Ordering::Relaxed);
            turns.push(version);
        }
        turns
    };
    let clients = join_all((0..CLIENTS).map(client)).await;
    let total: usize = clients.iter().map(|turns| turns.len() - 1).sum();
    let gaps = clients
        .iter()
        .flat_map(|turns| turns.windows(2).map(|pair| pair[1] - pair[0]));
    let gaps: BinaryHeap<u64> = gaps.collect();
    let gaps = gaps.into_sorted_vec();
    // If the machine pauses a process for a moment, each of its clients misses turns once. So only
    // 97 % of the waits are checked.
    let usual = gaps[gaps.len() * 97 / 100];
    let least = clients.iter().map(|turns| turns.len() - 1).min().unwrap();
    println!("{backend:?}: {total} renames, 97 % of the waits were for {usual} or fewer of them");
    assert!(usual < 4 * CLIENTS as u64, "{usual} of {gaps:?}");
    assert!(least > total / CLIENTS / 4, "{least} of {total}");
    let stored = events(&services[0].http, "milk").await;
    assert_eq!(stored.len(), total + 1);
}

/// 200 requests wait for one key without holding a connection. With four connections per database,
/// other requests complete before the first of the 200 times out.
async fn waiters_hold_no_connection(backend: Backend) {
    const WAITERS: usize = 200;

    let databases = Arc::new(Databases::new(backend).await);
    let few = databases.variable_with("max_connections=4");
    let settings = [
        ("ROCKET_DATABASES", few.as_str()),
        ("ROCKET_LEASE_MAX_WAIT", "8s"),
        ("ROCKET_WORKERS", "2"),
    ];
    let service = Service::on(Arc::clone(&databases), &settings).await;
    let http = &service.http;
    create(http, "milk").await;
    // The test holds the lease, as another process would, until the last of them has timed out.
    let figment = databases.figment().focus("databases.main");
    let figment = figment.merge(("connect_timeout", 5));
    let pool = UrlPool::init(&figment).await.unwrap();
    let held = UrlLockManager::new(&pool).acquire("todo:milk").await;
    let held = held.unwrap();

    let timed_out = Arc::new(AtomicU64::new(0));
    let waiters: Vec<_> = (0..WAITERS)
        .map(|number| {
            let (http, timed_out): (Http, _) = (http.clone(), Arc::clone(&timed_out));
            tokio::spawn(async move {
                let started = Instant::now();
                let response = rename(&http, "milk", &number.to_string(), "").await;
                timed_out.fetch_add(1, Ordering::SeqCst);
                (response, started.elapsed())
            })
        })
        .collect();
    eventually("the requests wait", async || {
        leases(http).await[0]["wanted"] == true
    })
    .await;
    let mut rounds = 0;
    while rounds < 15 && timed_out.load(Ordering::SeqCst) == 0 {
        let response = http.json("POST /todos", r#"{"title":"other"}"#).await;
        assert_eq!(response.status, 201, "{response:?}");
        for path in ["GET /todos", "GET /aggregates/todos", "GET /audit?limit=1"] {
            assert_eq!(http.send(path).await.status, 200);
        }
        rounds += 1;
    }
    println!("{backend:?}: {rounds} rounds of other requests meanwhile");
    assert!(rounds > 1, "other requests had to wait");
    for waiter in waiters {
        let (response, took) = waiter.await.unwrap();
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{response:?}"
        );
        assert_eq!(response.header("retry-after"), Some("1"));
        assert!(took > 7_900 * MS, "{took:?}");
    }
    held.release().await.unwrap();
}

/// Clients of two processes lease the same keys concurrently, in opposite orders.
async fn opposite_orders_never_deadlock(backend: Backend) {
    let services = processes(backend, 2, &[]).await;
    for id in ["a", "b", "c"] {
        create(&services[0].http, id).await;
    }
    let client = async |number: usize| {
        let http = &services[number % 2].http;
        let mut ids = ["a", "b", "c"];
        if number.is_multiple_of(3) {
            ids.reverse();
        }
        for _ in 0..5 {
            let body = json!({ "ids": ids }).to_string();
            let response = http.json("POST /aggregates/todos/complete", &body).await;
            assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
        }
    };
    join_all((0..12).map(client)).await;
    for id in ["a", "b", "c"] {
        assert_eq!(events(&services[0].http, id).await.len(), 2);
    }
}

/// Leases go by the clock of the database server.
mod postgres_clock {
    use super::*;

    #[rocket::async_test]
    async fn a_wrong_clock_of_a_client_does_not_affect_leases_on_postgres() {
        let databases = Arc::new(Databases::new(Backend::Postgres).await);
        let settings = [
            ("ROCKET_LEASE_TTL", "2s"),
            ("ROCKET_LEASE_MAX_WAIT", "60s"),
            // tokio's timers use the monotonic clock, which is never set by an operator.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let honest = Service::on(Arc::clone(&databases), &settings).await;
        create(&honest.http, "milk").await;
        for offset in ["-3600s", "+3600s"] {
            let wrapper = ["faketime", "-f", offset];
            let off = Starting::new(Arc::clone(&databases), &wrapper, &settings);
            let off = off.launched().await.unwrap();
            // The date in its responses is wrong by an hour.
            let date = off.get("/healthz").await;
            let honest_date = honest.get("/healthz").await;
            assert_ne!(
                date.header("date").unwrap()[..19],
                honest_date.header("date").unwrap()[..19]
            );
            // Both processes keep their leases by renewal, and respect each other's leases.
            for (holder, other) in [(&off, &honest), (&honest, &off)] {
                let http = holder.http.clone();
                let slow = tokio::spawn(async move {
                    rename(&http, "milk", "slow", "delay=4000@loaded").await
                });
                let mut held = Vec::new();
                eventually("the todo is leased", async || {
                    held = leases(&other.http).await;
                    !held.is_empty()
                })
                .await;
                let expires = held[0]["expires_in_ms"].as_i64().unwrap();
                assert!((0..=2_000).contains(&expires), "{held:?}");
                let waited = rename(&other.http, "milk", "waited", "").await;
                let slow = slow.await.unwrap();
                assert_eq!(slow.summary(), (200, Some("committed")), "{slow:?}");
                assert_eq!(waited.summary(), (200, Some("committed")), "{waited:?}");
            }
        }
        let stored = events(&honest.http, "milk").await;
        let tasks: Vec<_> = stored[1..]
            .iter()
            .map(|event| event["payload"]["task"].as_str().unwrap())
            .collect();
        assert_eq!(tasks, ["slow", "waited"].repeat(4));
    }
}

on_each_backend!(
    eight_processes_lose_and_repeat_nothing,
    a_stopped_holder_is_refused_when_it_continues,
    the_lease_of_a_killed_process_is_taken_over,
    waits_for_a_lease_are_bounded_and_fair,
    waiters_hold_no_connection,
    opposite_orders_never_deadlock,
);
