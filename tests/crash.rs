//! A process crashes, and another one starts on the same databases.

use std::sync::Arc;

use crate::support::{Backend, Databases, In, Service};

async fn stored(databases: &Databases) -> (Vec<String>, usize) {
    let titles = databases
        .texts(In::Main, "SELECT title FROM todos ORDER BY id")
        .await;
    let entries = databases.texts(In::Audit, "SELECT action FROM audit").await;
    (titles, entries.len())
}

async fn a_crash_leaves_both_databases_consistent(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let mut service = Service::on(Arc::clone(&databases), &[]).await;
    assert_eq!(service.new_todo("kept", "").await.status, 201);

    service.crash("before", "crash=before-commit").await;
    let mut service = Service::on(Arc::clone(&databases), &[]).await;
    assert_eq!(stored(&databases).await, (vec!["kept".into()], 1));

    service.crash("after", "crash=after-commit").await;
    let service = Service::on(Arc::clone(&databases), &[]).await;
    assert_eq!(
        stored(&databases).await,
        (vec!["kept".into(), "after".into()], 2)
    );

    // The next process continues to write.
    assert_eq!(service.new_todo("next", "").await.status, 201);
    assert_eq!(stored(&databases).await.1, 3);
    service.stop().await;
}

/// Two databases that commit one after the other may commit in part. The documentation says so.
async fn without_atomic_commit_a_crash_between_two_commits_is_partial(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let variables = [("ROCKET_ATOMIC_COMMIT", "off")];
    let mut service = Service::on(Arc::clone(&databases), &variables).await;
    service.crash("half", "crash=between-commits").await;
    let service = Service::on(Arc::clone(&databases), &variables).await;
    assert_eq!(stored(&databases).await, (vec!["half".into()], 0));
    service.stop().await;
}

async fn every_other_fault_leaves_both_or_neither(backend: Backend) {
    let service = Service::start(backend).await;
    let databases = &service.databases;
    for fault in [
        "respond=400",
        "respond=404",
        "respond=409",
        "respond=500",
        "respond=502",
        "panic",
        "doom",
        "commit",
        "swallow",
        "leak=20",
        "delay=20,respond=503",
        "swallow,panic",
        "commit,leak=20",
        "doom,commit,swallow",
    ] {
        let response = service.new_todo(fault, fault).await;
        assert!(response.status >= 400, "{fault}: {}", response.status);
        assert_eq!(response.outcome(), Some("rolled-back"), "{fault}");
        assert_eq!(stored(databases).await, (vec![], 0), "{fault}");
    }
    if backend == Backend::Postgres {
        let response = service.new_todo("disconnect", "disconnect").await;
        assert_eq!(response.summary(), (503, Some("rolled-back")));
        assert_eq!(stored(databases).await, (vec![], 0));
    }
    let mut kept = 0;
    for fault in [
        "",
        "delay=20",
        "respond=200",
        "respond=303",
        "downstream=502",
    ] {
        let response = service.new_todo("kept", fault).await;
        assert!(response.status < 400, "{fault}: {}", response.status);
        assert_eq!(response.outcome(), Some("committed"), "{fault}");
        kept += 1;
        assert_eq!(
            stored(databases).await,
            (vec!["kept".into(); kept], kept),
            "{fault}"
        );
    }
    service.stop().await;
}

/// The other service refuses, times out, or agrees.
async fn sharing_is_undone_if_the_other_service_fails(backend: Backend) {
    let service = Service::start(backend).await;
    let todo: rocket::serde::json::Value = service.new_todo("shared?", "").await.json();
    let share = format!("POST /todos/{}/share", todo["id"]);
    for (fault, status, outcome, shared) in [
        ("downstream=502", 502, "rolled-back", "0"),
        ("downstream=404", 502, "rolled-back", "0"),
        ("downstream=timeout", 504, "rolled-back", "0"),
        ("", 200, "committed", "1"),
    ] {
        let request = service.http.request(&share).header("X-Fault", fault);
        let response = crate::support::HttpResponse::of(request).await;
        assert_eq!(
            response.summary(),
            (status, Some(outcome)),
            "{fault}: {}",
            response.body
        );
        let found = service
            .databases
            .texts(
                In::Main,
                "SELECT CASE WHEN shared THEN '1' ELSE '0' END FROM todos",
            )
            .await;
        assert_eq!(found, [shared], "{fault}");
        let entries = stored(&service.databases).await.1;
        assert_eq!(entries, if shared == "1" { 2 } else { 1 }, "{fault}");
    }
    service.stop().await;
}

on_each_backend!(
    a_crash_leaves_both_databases_consistent,
    without_atomic_commit_a_crash_between_two_commits_is_partial,
    every_other_fault_leaves_both_or_neither,
    sharing_is_undone_if_the_other_service_fails,
);
