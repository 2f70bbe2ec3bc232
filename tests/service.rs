//! The real service as a process, on each backend: what the client is told is what is stored.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Backend, Service};

async fn new_todo(service: &Service, title: &str, fault: Option<&str>) -> support::Answer {
    service
        .post("/todos", &format!(r#"{{"title":"{title}"}}"#), fault)
        .await
}

async fn success_commits_and_failure_leaves_nothing(backend: Backend) {
    let service = Service::start(backend).await;
    let kept = new_todo(&service, "kept", None).await;
    assert_eq!(kept.status, 201);
    assert_eq!(kept.header("transaction-outcome"), Some("committed"));

    for (fault, status) in [
        ("respond=400", 400),
        ("respond=502", 502),
        ("panic", 500),
        ("commit", 409),
        ("swallow", 500),
        ("leak=50", 500),
        ("doom", 409),
    ] {
        let lost = new_todo(&service, "lost", Some(fault)).await;
        assert_eq!(lost.status, status, "{fault}");
        assert_eq!(
            lost.header("transaction-outcome"),
            Some("rolled-back"),
            "{fault}"
        );
    }

    let todos: Vec<rocket::serde::json::Value> = service.get("/todos").await.json();
    assert_eq!(todos.len(), 1);
    assert_eq!(todos[0]["title"], "kept");
    let audit: Vec<rocket::serde::json::Value> = service.get("/audit").await.json();
    assert_eq!(audit.len(), 1);
    service.stop().await;
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn success_commits_and_failure_leaves_nothing() {
        super::success_commits_and_failure_leaves_nothing(Backend::Sqlite).await;
    }
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn success_commits_and_failure_leaves_nothing() {
        super::success_commits_and_failure_leaves_nothing(Backend::Postgres).await;
    }
}
