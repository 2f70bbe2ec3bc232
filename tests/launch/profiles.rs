//! Failure injection is for development. In release it is off unless `faults` is set.

use std::sync::Arc;

use rocket::serde::json::Value;

use crate::support::{Backend, Databases, HttpResponse, Service};

const RELEASE: [(&str, &str); 2] = [("ROCKET_PROFILE", "release"), ("ROCKET_FAULTS", "")];

async fn launched(backend: Backend, variables: &[(&str, &str)]) -> Service {
    let databases = Databases::new(backend).await;
    Service::on(Arc::new(databases), variables).await
}

/// The response is a problem document with this status and this kind.
fn assert_problem(response: &HttpResponse, status: u16, kind: &str) {
    assert_eq!(response.status, status, "{response:?}");
    let content_type = response.header("content-type");
    assert_eq!(
        content_type,
        Some("application/problem+json"),
        "{response:?}"
    );
    let problem: Value = response.json();
    assert_eq!(problem["type"], format!("urn:rocket_tx:problem:{kind}"));
    assert_eq!(problem["status"], status);
}

async fn titles(service: &Service) -> Vec<String> {
    let todos: Vec<Value> = service.get("/todos").await.json();
    let title = |todo: &Value| todo["title"].as_str().unwrap().to_owned();
    todos.iter().map(title).collect()
}

async fn in_release_a_request_that_carries_a_fault_is_not_executed(backend: Backend) {
    let service = launched(backend, &RELEASE).await;
    let first = service.new_todo("first", "").await;
    assert_eq!(first.summary(), (201, Some("committed")));
    let id = first.json::<Value>()["url"]
        .as_str()
        .and_then(|url| url.rsplit('/').next().map(str::to_owned))
        .unwrap();

    for fault in [
        "respond=201",
        "respond=502",
        "delay=1",
        "delay=1@loaded",
        "expire-lease",
        "panic",
        "leak=1",
        "swallow",
        "crash=before-commit",
        "crash=after-commit",
        "downstream=500",
    ] {
        assert_problem(&service.new_todo("lost", fault).await, 403, "faults-off");
        let path = format!("POST /todos?fault={fault}");
        let by_query = service.http.json(&path, r#"{"title":"lost"}"#).await;
        assert_problem(&by_query, 403, "faults-off");
    }
    for request in [
        format!("DELETE /todos/{id}"),
        "DELETE /todos".into(),
        format!("POST /todos/{id}/share"),
        "GET /todos".into(),
        "GET /audit".into(),
        "GET /registry".into(),
    ] {
        let refused = service.http.send(&format!("{request}?fault=delay=1")).await;
        assert_problem(&refused, 403, "faults-off");
    }
    assert_eq!(titles(&service).await, ["first"]);
    let audit: Vec<Value> = service.get("/audit").await.json();
    assert_eq!(audit.len(), 1);

    // Without the fault, each of them is executed.
    assert_eq!(service.new_todo("second", "").await.status, 201);
    let shared = format!("POST /todos/{id}/share");
    let shared = service.http.send(&shared).await;
    assert_eq!(shared.outcome(), Some("committed"), "{shared:?}");
    let deleted = service.http.send(&format!("DELETE /todos/{id}")).await;
    assert_eq!(deleted.outcome(), Some("committed"), "{deleted:?}");
    assert_eq!(titles(&service).await, ["second"]);
    service.stop().await;
}

async fn an_unknown_fault_is_refused_and_nothing_executed(backend: Backend) {
    let service = Service::start(backend).await;
    for fault in [
        "explode",
        "respond",
        "respond=99",
        "respond=600",
        "delay=soon",
        "panic=now",
        "crash=whenever",
        "downstream=maybe",
        "delay=1,explode",
    ] {
        assert_problem(&service.new_todo("lost", fault).await, 422, "validation");
        let path = format!("POST /todos?fault={fault}");
        let by_query = service.http.json(&path, r#"{"title":"lost"}"#).await;
        assert_problem(&by_query, 422, "validation");
    }
    assert!(titles(&service).await.is_empty());
    let audit: Vec<Value> = service.get("/audit").await.json();
    assert!(audit.is_empty());

    assert_eq!(service.new_todo("kept", "delay=1").await.status, 201);
    assert_eq!(titles(&service).await, ["kept"]);
}

on_each_backend!(
    in_release_a_request_that_carries_a_fault_is_not_executed,
    an_unknown_fault_is_refused_and_nothing_executed,
);

mod defaults {
    mod sqlite {
        use super::super::*;

        #[rocket::async_test]
        async fn by_default_only_the_debug_profile_has_faults() {
            for (profile, setting, on) in [
                ("debug", "", true),
                ("release", "", false),
                ("staging", "", false),
                ("debug", "false", false),
                ("release", "true", true),
            ] {
                let variables = [("ROCKET_PROFILE", profile), ("ROCKET_FAULTS", setting)];
                let service = launched(Backend::Sqlite, &variables).await;
                let response = service.new_todo("lost", "respond=418").await;
                let expected = if on { 418 } else { 403 };
                assert_eq!(
                    response.status, expected,
                    "{profile} {setting:?}: {response:?}"
                );
                assert!(titles(&service).await.is_empty());
            }
        }
    }
}
