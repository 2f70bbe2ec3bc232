//! The reference service: what the client is told is what is stored.

use rocket::serde::json::Value;

use crate::support::{Backend, Service};

async fn success_commits_and_failure_leaves_nothing(backend: Backend) {
    let service = Service::start(backend).await;
    let kept = service.new_todo("kept", "").await;
    assert_eq!(kept.told(), (201, Some("committed")));

    for (fault, status) in [
        ("respond=400", 400),
        ("respond=502", 502),
        ("panic", 500),
        ("commit", 409),
        ("swallow", 500),
        ("leak=50", 500),
        ("doom", 409),
    ] {
        let lost = service.new_todo("lost", fault).await;
        assert_eq!(lost.told(), (status, Some("rolled-back")), "{fault}");
    }

    let todos: Vec<Value> = service.get("/todos").await.json();
    assert_eq!(todos.len(), 1);
    assert_eq!(todos[0]["title"], "kept");
    let audit: Vec<Value> = service.get("/audit").await.json();
    assert_eq!(audit.len(), 1);
    service.stop().await;
}

on_each_backend!(success_commits_and_failure_leaves_nothing);
