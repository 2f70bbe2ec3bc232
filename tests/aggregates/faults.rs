//! After any failure, a stream, its read model and its snapshot are unchanged, and its lease is
//! released.

use std::sync::Arc;

use rocket::futures::future::join_all;

use super::{create, leases, rename, rename_without_response, stored};
use crate::support::{Backend, Databases, In, Service, eventually};

/// A snapshot is taken with every event, so that each rollback must undo one.
const SETTINGS: &[(&str, &str)] = &[("ROCKET_SNAPSHOT_INTERVAL", "1")];

async fn service(backend: Backend) -> Service {
    let databases = Databases::new(backend).await;
    Service::on(Arc::new(databases), SETTINGS).await
}

async fn a_rollback_after_any_fault_leaves_no_trace(backend: Backend) {
    let service = service(backend).await;
    let http = &service.http;
    create(http, "milk").await;
    rename(http, "milk", "second", "").await;
    let before = stored(&service.databases).await;
    assert_eq!(before.len(), 4, "{before:?}");
    for (fault, status) in [
        ("respond=502", 502),
        ("respond=404", 404),
        ("panic", 500),
        ("doom", 409),
        ("commit", 409),
        ("swallow", 500),
        ("leak=50", 500),
        ("expire-lease", 409),
        ("disconnect", 503),
    ] {
        if fault == "disconnect" && backend == Backend::Sqlite {
            continue;
        }
        let response = rename(http, "milk", "never", fault).await;
        assert_eq!(
            response.summary(),
            (status, Some("rolled-back")),
            "{fault}: {response:?}"
        );
        assert_eq!(stored(&service.databases).await, before, "{fault}");
        if fault == "expire-lease" {
            assert_eq!(leases(http).await[0]["token"], "expire-lease");
            let freed = http.send("DELETE /leases/expire-lease").await;
            assert_eq!(freed.status, 204);
        }
        // A leaked connection returns to its pool later, and the lease may be released only then.
        eventually("the lease is free", async || leases(http).await.is_empty()).await;
    }
    let response = rename(http, "milk", "third", "").await;
    assert_eq!(response.summary(), (200, Some("committed")));
    assert_eq!(response.header("etag"), Some("\"3\""));
    let audit = "SELECT action FROM audit";
    assert_eq!(service.databases.texts(In::Audit, audit).await.len(), 3);
}

async fn a_crash_leaves_a_whole_command_or_nothing(backend: Backend) {
    for (point, length) in [
        ("before-commit", 1),
        ("between-commits", 1),
        ("after-commit", 2),
    ] {
        let databases = Arc::new(Databases::new(backend).await);
        let settings = [
            SETTINGS[0],
            ("ROCKET_LEASE_TTL", "1s"),
            ("ROCKET_ATOMIC_COMMIT", "off"),
        ];
        let mut service = Service::on(Arc::clone(&databases), &settings).await;
        create(&service.http, "milk").await;
        let request = service
            .http
            .request("POST /aggregates/todos/milk/rename")
            .header("Content-Type", "application/json")
            .header("X-Fault", format!("crash={point}"))
            .body(r#"{"task":"new"}"#);
        assert!(request.send().await.is_err(), "{point}");
        assert!(!service.ended().await.success());
        let stored = stored(&databases).await;
        assert_eq!(stored.len(), length + 2, "{point}: {stored:?}");
        // The next process can write, at the latest when the lease has expired.
        let next = Service::on(Arc::clone(&databases), &settings).await;
        let response = rename(&next.http, "milk", "next", "").await;
        let tag = format!("\"{}\"", length + 1);
        assert_eq!(response.header("etag"), Some(tag.as_str()), "{point}");
        next.stop().await;
    }
}

/// The request takes three times as long as a lease lasts.
async fn renewal_keeps_the_lease_of_a_slow_request(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let settings = [("ROCKET_LEASE_TTL", "2s"), ("ROCKET_LEASE_MAX_WAIT", "60s")];
    let service = Service::on(Arc::clone(&databases), &settings).await;
    let other = Service::on(databases, &settings).await;
    create(&service.http, "milk").await;
    let slow = service.http.clone();
    let slow =
        tokio::spawn(async move { rename(&slow, "milk", "slow", "delay=6000@loaded").await });
    eventually("the todo is leased", async || {
        !leases(&service.http).await.is_empty()
    })
    .await;
    let quick = rename(&other.http, "milk", "quick", "").await;
    let slow = slow.await.unwrap();
    assert_eq!(slow.summary(), (200, Some("committed")));
    assert_eq!(slow.header("etag"), Some("\"2\""));
    assert_eq!(quick.header("etag"), Some("\"3\""));
}

async fn a_shutdown_releases_the_lease_of_a_request_in_flight(backend: Backend) {
    let service = service(backend).await;
    create(&service.http, "milk").await;
    for (fault, length) in [
        ("delay=1500@loaded", 2),
        ("delay=1500@loaded,respond=502", 2),
    ] {
        let next = Service::on(Arc::clone(&service.databases), SETTINGS).await;
        let http = next.http.clone();
        let slow = tokio::spawn(async move { rename(&http, "milk", "slow", fault).await });
        eventually("the todo is leased", async || {
            !leases(&service.http).await.is_empty()
        })
        .await;
        next.stop().await;
        let response = slow.await.unwrap();
        assert!([200, 502].contains(&response.status), "{response:?}");
        assert!(leases(&service.http).await.is_empty());
        assert_eq!(stored(&service.databases).await.len(), length + 2);
    }
}

/// Requests commit or roll back at the moment of the renewal of their lease, which is after 400 ms.
/// The lease lasts 1.2 s, so that a renewal that is late on a busy machine still finds the lease.
async fn a_renewal_never_races_the_commit(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let settings = [("ROCKET_LEASE_TTL", "1200ms")];
    let service = Service::on(databases, &settings).await;
    let client = async |number: u32| {
        let id = format!("raced{number}");
        create(&service.http, &id).await;
        for delay in (385..415).step_by(3) {
            let fault = format!("delay={}@loaded", delay + number);
            let response = rename(&service.http, &id, "kept", &fault).await;
            assert_eq!(
                response.summary(),
                (200, Some("committed")),
                "{fault}: {response:?}"
            );
            let fault = format!("{fault},respond=502");
            let response = rename(&service.http, &id, "undone", &fault).await;
            assert_eq!(
                response.summary(),
                (502, Some("rolled-back")),
                "{fault}: {response:?}"
            );
        }
    };
    join_all((0..4).map(client)).await;
    assert!(leases(&service.http).await.is_empty());
}

/// On SQLite, a rollback releases the lease on the same connection.
async fn fencing_tokens_grow_across_rollbacks(backend: Backend) {
    let service = service(backend).await;
    create(&service.http, "milk").await;
    let mut last = i64::MIN;
    for fault in ["respond=502", "respond=200", "panic", "respond=502"] {
        let http = service.http.clone();
        let fault = format!("delay=1000@loaded,{fault}");
        let slow = tokio::spawn(async move { rename(&http, "milk", "slow", &fault).await });
        let mut held = Vec::new();
        eventually("the todo is leased", async || {
            held = leases(&service.http).await;
            !held.is_empty()
        })
        .await;
        let token = held[0]["fencing_token"].as_i64().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
        slow.await.unwrap();
        assert!(leases(&service.http).await.is_empty());
    }
}

/// The requests take longer than a lease lasts, while two processes sweep leases all the time.
async fn sweeping_fails_no_request(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let settings = [
        ("ROCKET_LEASE_TTL", "2s"),
        ("ROCKET_LEASE_SWEEP_INTERVAL", "100ms"),
    ];
    let service = Service::on(Arc::clone(&databases), &settings).await;
    let _another_sweeps_too = Service::on(databases, &settings).await;
    let client = async |number: usize| {
        let id = format!("slow {number}");
        create(&service.http, &id).await;
        let path = id.replace(' ', "%20");
        for round in 0..2 {
            let task = round.to_string();
            let response = rename(&service.http, &path, &task, "delay=3000@loaded").await;
            assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
        }
    };
    join_all((0..8).map(client)).await;
    assert!(leases(&service.http).await.is_empty());
}

/// A crashed process leaves a lease, and no other request acquires its key.
async fn expired_leases_are_swept(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let settings = [
        ("ROCKET_LEASE_TTL", "2s"),
        ("ROCKET_LEASE_SWEEP_INTERVAL", "200ms"),
    ];
    let service = Service::on(Arc::clone(&databases), &settings).await;
    let crashing = Service::on(databases, &settings).await;
    create(&service.http, "milk").await;
    let lost = rename_without_response(&crashing.http, "milk");
    eventually("the todo is leased", async || {
        !leases(&service.http).await.is_empty()
    })
    .await;
    crashing.signal("KILL");
    assert!(lost.await.unwrap());
    assert!(!leases(&service.http).await.is_empty(), "still leased");
    eventually("the lease is swept", async || {
        leases(&service.http).await.is_empty()
    })
    .await;
}

on_each_backend!(
    a_shutdown_releases_the_lease_of_a_request_in_flight,
    expired_leases_are_swept,
    sweeping_fails_no_request,
    a_renewal_never_races_the_commit,
    fencing_tokens_grow_across_rollbacks,
    a_rollback_after_any_fault_leaves_no_trace,
    a_crash_leaves_a_whole_command_or_nothing,
    renewal_keeps_the_lease_of_a_slow_request,
);
