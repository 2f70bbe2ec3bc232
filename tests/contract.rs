//! The contract of the service: the Todo-Backend API, the audit trail, the health checks.

use std::sync::Arc;

use rocket::serde::json::Value;

use crate::support::{Backend, Break, Databases, HttpResponse, In, Service, eventually};

async fn created(service: &Service, body: &str) -> Value {
    let response = service.http.json("POST /todos", body).await;
    assert_eq!(
        response.summary(),
        (201, Some("committed")),
        "{}",
        response.body
    );
    let todo: Value = response.json();
    assert_eq!(response.header("location"), todo["url"].as_str());
    todo
}

/// Requests the URL in the todo's field `url`.
async fn at(service: &Service, todo: &Value) -> HttpResponse {
    let path = todo["url"]
        .as_str()
        .unwrap()
        .strip_prefix(&service.http.base)
        .unwrap();
    service.get(path).await
}

async fn todos_keep_the_todo_backend_contract(backend: Backend) {
    let service = Service::start(backend).await;
    assert_eq!(service.get("/todos").await.body, "[]");

    let todo = created(
        &service,
        r#"{"title": "walk the dog", "order": 523, "extra": true}"#,
    )
    .await;
    assert_eq!(todo["title"], "walk the dog");
    assert_eq!(todo["completed"], false);
    assert_eq!(todo["order"], 523);
    assert_eq!(at(&service, &todo).await.json::<Value>(), todo);
    let other = created(&service, r#"{"title": "wash the dog", "completed": true}"#).await;
    assert_eq!(other["completed"], true);
    let list: Vec<Value> = service.get("/todos").await.json();
    assert_eq!(list, [todo.clone(), other.clone()]);

    let path = format!("PATCH /todos/{}", todo["id"]);
    for (change, field, value) in [
        (
            r#"{"title": "bathe the cat"}"#,
            "title",
            Value::from("bathe the cat"),
        ),
        (r#"{"completed": true}"#, "completed", Value::from(true)),
        (r#"{"order": 95.0}"#, "order", Value::from(95)),
        (r#"{"order": 1e3}"#, "order", Value::from(1_000)),
        (
            r#"{"order": -9007199254740991}"#,
            "order",
            Value::from(-9_007_199_254_740_991_i64),
        ),
        (r#"{"order": 95}"#, "order", Value::from(95)),
        (r#"{"order": null}"#, "order", Value::from(95)),
        (r#"{"completed": false}"#, "completed", Value::from(false)),
        ("{}", "order", Value::from(95)),
    ] {
        let response = service.http.json(&path, change).await;
        assert_eq!(response.summary(), (200, Some("committed")), "{change}");
        let changed: Value = response.json();
        assert_eq!(changed[field], value, "{change}");
        assert_eq!(
            at(&service, &todo).await.json::<Value>(),
            changed,
            "{change}"
        );
    }
    let changed: Value = at(&service, &todo).await.json();
    assert_eq!(changed["title"], "bathe the cat", "omitted fields stay");

    let gone = service
        .http
        .send(&format!("DELETE /todos/{}", todo["id"]))
        .await;
    assert_eq!(gone.summary(), (204, Some("committed")));
    assert_eq!(at(&service, &todo).await.status, 404);
    assert_eq!(
        service.http.send("DELETE /todos").await.summary(),
        (204, Some("committed"))
    );
    assert_eq!(service.get("/todos").await.body, "[]");
    service.stop().await;
}

async fn pages_of_any_origin_may_use_the_api(backend: Backend) {
    let service = Service::start(backend).await;
    for line in [
        "GET /todos",
        "OPTIONS /todos",
        "OPTIONS /todos/1",
        "GET /todos/7",
        "GET /audit",
        "PUT /todos",
    ] {
        let request = service
            .http
            .request(line)
            .header("Origin", "http://elsewhere.test")
            .header("Access-Control-Request-Method", "PATCH");
        let response = HttpResponse::of(request).await;
        assert_eq!(
            response.header("access-control-allow-origin"),
            Some("*"),
            "{line}"
        );
        let methods = response.header("access-control-allow-methods").unwrap();
        for method in ["GET", "POST", "PATCH", "DELETE"] {
            assert!(methods.contains(method), "{line} allows {methods}");
        }
    }
    service.stop().await;
}

async fn the_audit_trail_is_paged_newest_first(backend: Backend) {
    let service = Service::start(backend).await;
    let mut ids = Vec::new();
    for number in 0..25 {
        let response = service.new_todo(&number.to_string(), "").await;
        ids.push(response.header("x-request-id").unwrap().to_owned());
        // A rollback leaves a gap in the ids, but not in the pages.
        assert_eq!(service.new_todo("lost", "respond=500").await.status, 500);
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page: Vec<Value> = service.get(&format!("/audit?limit=10{after}")).await.json();
        let Some(last) = page.last() else {
            break;
        };
        assert!(page.len() <= 10);
        after = format!("&after={}", last["id"]);
        seen.extend(
            page.iter()
                .map(|entry| entry["request_id"].as_str().unwrap().to_owned()),
        );
    }
    assert_eq!(seen, ids);
    let all: Vec<Value> = service.get("/audit").await.json();
    assert_eq!(all.len(), 25);
    assert_eq!(all[0]["action"], "todo created");
    assert!(all[0]["at"].as_i64().unwrap() > 1_600_000_000_000);
    service.stop().await;
}

async fn a_running_service_is_healthy_and_ready(backend: Backend) {
    let service = Service::start(backend).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(service.get(path).await.status, 204, "{path}");
    }
    service.stop().await;
}

mod away {
    pub mod postgres {
        use super::super::*;

        #[rocket::async_test]
        async fn the_service_is_not_ready_while_a_database_does_not_reply() {
            let mut databases = Databases::new(Backend::Postgres).await;
            let proxy = databases.by_proxy(In::Audit).await;
            let service = Service::on(Arc::new(databases), &[]).await;
            proxy.set("SHOW transaction_read_only", Break::Before);
            let response = service.get("/readyz").await;
            assert_eq!(response.status, 503, "{}", response.body);
            assert_eq!(
                response.header("content-type"),
                Some("application/problem+json")
            );
            assert_eq!(service.get("/healthz").await.status, 204);
            eventually("the service is ready again", async || {
                service.get("/readyz").await.status == 204
            })
            .await;
            service.stop().await;
        }
    }
}

on_each_backend!(
    todos_keep_the_todo_backend_contract,
    pages_of_any_origin_may_use_the_api,
    the_audit_trail_is_paged_newest_first,
    a_running_service_is_healthy_and_ready,
);
