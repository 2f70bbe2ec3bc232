//! The contract of `/aggregates/todos` and `/leases` with clients.

use rocket::serde::json::{Value, json};

use super::{create, events, leases, rename};
use crate::support::{Backend, HttpResponse, In, Service};

async fn a_todo_is_created_only_once(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    let body = r#"{"id":"milk","user_id":"ann","task":"buy milk"}"#;
    let response = http.json("POST /aggregates/todos", body).await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(response.header("etag"), Some("\"1\""));
    assert_eq!(response.header("location"), Some("/aggregates/todos/milk"));
    let todo = json!({"id":"milk","version":1,"user_id":"ann","task":"buy milk","completed":false});
    assert_eq!(response.json::<Value>(), todo);
    let found = service.get("/aggregates/todos/milk").await;
    assert_eq!(found.json::<Value>(), todo);
    assert_eq!(found.header("etag"), Some("\"1\""));

    let again = http.json("POST /aggregates/todos", body).await;
    assert_eq!((again.status, again.kind().as_str()), (409, "exists"));
    assert_eq!(events(http, "milk").await.len(), 1);

    // A todo without an id gets one.
    let body = r#"{"user_id":"ann","task":"buy milk"}"#;
    let response = http.json("POST /aggregates/todos", body).await;
    let id = response.json::<Value>()["id"].as_str().unwrap().to_owned();
    let location = response.header("location").unwrap();
    assert_eq!(location, format!("/aggregates/todos/{id}"));
    assert_eq!(service.get(location).await.status, 200);
    assert_eq!(service.get("/aggregates/todos/none").await.status, 404);
}

async fn a_todo_is_completed_only_once(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    create(http, "milk").await;
    for _ in 0..2 {
        let response = http.send("POST /aggregates/todos/milk/complete").await;
        assert_eq!(response.summary(), (200, Some("committed")));
        assert_eq!(response.header("etag"), Some("\"2\""));
        assert_eq!(response.json::<Value>()["completed"], true);
    }
    let names: Vec<Value> = events(http, "milk").await;
    let names: Vec<&Value> = names.iter().map(|event| &event["name"]).collect();
    assert_eq!(names, ["created", "completed"]);
    let audit: Vec<Value> = service.get("/audit").await.json();
    assert_eq!(audit.len(), 2, "{audit:?}");
    assert_eq!(audit[0]["action"], "aggregate completed");
    let missing = http.send("POST /aggregates/todos/none/complete").await;
    assert_eq!(missing.status, 404);
    assert!(leases(http).await.is_empty());
}

async fn if_match_requires_the_current_version(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    create(http, "milk").await;
    let rename_if = async |tag: &str| {
        let request = http
            .request("POST /aggregates/todos/milk/rename")
            .header("Content-Type", "application/json")
            .header("If-Match", tag)
            .body(r#"{"task":"new"}"#);
        HttpResponse::of(request).await
    };
    for tag in ["\"0\"", "\"2\"", "1", "W/\"1\"", "x", "\"5\", \"7\""] {
        let response = rename_if(tag).await;
        assert_eq!(response.summary(), (412, Some("rolled-back")), "{tag}");
        assert_eq!(response.kind(), "version");
    }
    assert_eq!(rename_if("\"1\"").await.header("etag"), Some("\"2\""));
    assert_eq!(rename_if("*").await.header("etag"), Some("\"3\""));
    let response = rename_if("\"5\", \"3\"").await;
    assert_eq!(response.header("etag"), Some("\"4\""));
    let complete = http.request("POST /aggregates/todos/milk/complete");
    let response = HttpResponse::of(complete.header("If-Match", "\"1\"")).await;
    assert_eq!(response.status, 412);
    assert_eq!(events(http, "milk").await.len(), 4);
}

async fn several_todos_are_completed_together_or_not_at_all(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    for id in ["a", "b", "c"] {
        create(http, id).await;
    }
    let complete = async |ids: Value| {
        let body = json!({ "ids": ids }).to_string();
        http.json("POST /aggregates/todos/complete", &body).await
    };
    let response = complete(json!(["a", "none", "c"])).await;
    assert_eq!(response.summary(), (404, Some("rolled-back")));
    assert_eq!(events(http, "a").await.len(), 1);
    let response = complete(json!(["c", "a"])).await;
    assert_eq!(response.summary(), (200, Some("committed")));
    let ids: Value = response.json();
    assert_eq!((&ids[0]["id"], &ids[1]["id"]), (&json!("c"), &json!("a")));
    for (id, length) in [("a", 2), ("b", 1), ("c", 2)] {
        assert_eq!(events(http, id).await.len(), length);
    }
    for ids in [
        json!([]),
        json!(["a", "a"]),
        json!(vec!["x"; 101]),
        json!([""]),
    ] {
        assert_eq!(complete(ids.clone()).await.status, 422, "{ids}");
    }
    assert!(leases(http).await.is_empty());
}

async fn lists_are_paged(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    for id in ["a", "b", "c", "d d"] {
        create(http, id).await;
    }
    rename(http, "b", "second", "").await;
    let ids = async |path: &str| -> Vec<String> {
        let page: Vec<Value> = service.get(path).await.json();
        let id = |todo: &Value| todo["id"].as_str().unwrap().to_owned();
        page.iter().map(id).collect()
    };
    assert_eq!(ids("/aggregates/todos").await, ["a", "b", "c", "d d"]);
    assert_eq!(ids("/aggregates/todos?limit=2").await, ["a", "b"]);
    assert_eq!(ids("/aggregates/todos?after=b&limit=1").await, ["c"]);
    assert_eq!(ids("/aggregates/todos?after=d%20d").await.len(), 0);
    let list: Value = service
        .get("/aggregates/todos?after=a&limit=1")
        .await
        .json();
    assert_eq!(
        list[0],
        json!({"id":"b","user_id":"ann","task":"second","completed":false,"version":2})
    );
    let refused = http.send("DELETE /leases/%00").await;
    assert_eq!(refused.status, 404, "{refused:?}");
    for path in [
        "/aggregates/todos?after=a%00",
        "/aggregates/todos?limit=0",
        "/aggregates/todos?limit=201",
        "/aggregates/todos/b/events?limit=x",
        "/aggregates/todos/b/events?after=-1",
    ] {
        assert_eq!(service.get(path).await.status, 422, "{path}");
    }
    let page: Vec<Value> = service
        .get("/aggregates/todos/b/events?limit=1")
        .await
        .json();
    assert_eq!((page.len(), &page[0]["name"]), (1, &json!("created")));
    let page: Vec<Value> = service
        .get("/aggregates/todos/b/events?after=1")
        .await
        .json();
    assert_eq!((page.len(), &page[0]["name"]), (1, &json!("renamed")));
    let request = page[0]["metadata"]["request_id"].as_str().unwrap();
    assert_eq!(request.len(), 36);
    assert!(page[0]["recorded_at"].as_i64().unwrap() > 1_700_000_000_000);
    assert_eq!(
        service.get("/aggregates/todos/none/events").await.status,
        404
    );
}

async fn invalid_ids_are_refused_and_unusual_ones_work(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    let long = "x".repeat(201);
    for id in ["a%0Ab", "%00", "%7F", &long] {
        for (line, body) in [
            (format!("GET /aggregates/todos/{id}"), ""),
            (format!("GET /aggregates/todos/{id}/events"), ""),
            (format!("POST /aggregates/todos/{id}/complete"), ""),
            (
                format!("POST /aggregates/todos/{id}/rename"),
                r#"{"task":"x"}"#,
            ),
        ] {
            let response = http.json(&line, body).await;
            assert_eq!(response.status, 422, "{line}: {response:?}");
        }
    }
    for id in ["", "a\nb", ".", "..", &long] {
        let body = json!({ "id": id, "user_id": "ann", "task": "x" }).to_string();
        let response = http.json("POST /aggregates/todos", &body).await;
        assert_eq!(
            (response.status, response.kind().as_str()),
            (422, "validation")
        );
        assert!(response.body.contains("`id`"), "{response:?}");
    }
    // The header `Location` is an encoded URL.
    let body = r#"{"id":"a[b] %/..","user_id":"ann","task":"x"}"#;
    let response = http.json("POST /aggregates/todos", body).await;
    let location = response.header("location").unwrap();
    assert_eq!(location, "/aggregates/todos/a%5Bb%5D%20%25%2F..");
    assert_eq!(service.get(location).await.status, 200);
    // The longest valid id, and unusual valid ids.
    for id in ["x".repeat(200), "ü/ \"'%;--".into(), "complete".into()] {
        create(http, &id).await;
        let id: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let found = service.get(&format!("/aggregates/todos/{id}")).await;
        assert_eq!(found.status, 200, "{found:?}");
        assert_eq!(rename(http, &id, "y", "").await.status, 200);
    }
    for body in [
        r#"{"task":""}"#,
        r#"{"task":1}"#,
        r#"{}"#,
        r#"{"task":"a\u0000"}"#,
    ] {
        let response = http
            .json("POST /aggregates/todos/complete/rename", body)
            .await;
        assert_eq!(response.status, 422, "{body}");
        assert!(response.body.contains("task"), "{response:?}");
    }
    let array = http
        .json("POST /aggregates/todos/complete/rename", r#"["task"]"#)
        .await;
    assert_eq!(array.status, 422, "{array:?}");
}

async fn an_older_event_loads_through_its_upcaster(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    create(http, "milk").await;
    (service.databases)
        .execute(
            In::Main,
            "INSERT INTO aggregate_events VALUES \
             ('todo:milk', 2, 'renamed', 1, '{\"title\":\"of old\"}', '{}', 0)",
        )
        .await;
    let todo: Value = service.get("/aggregates/todos/milk").await.json();
    assert_eq!(
        (&todo["task"], &todo["version"]),
        (&json!("of old"), &json!(2))
    );
    let response = rename(http, "milk", "of now", "").await;
    assert_eq!(response.header("etag"), Some("\"3\""));
    // The stored event is unchanged.
    let stored = events(http, "milk").await;
    assert_eq!(stored[1]["payload"], json!({ "title": "of old" }));
    assert_eq!(
        (&stored[1]["version"], &stored[2]["version"]),
        (&json!(1), &json!(2))
    );
}

async fn a_corrupt_event_blocks_only_its_stream(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    create(http, "good").await;
    let corrupted = [
        (
            "a",
            "UPDATE aggregate_events SET payload = '{\"secret' WHERE stream = 'todo:a'",
        ),
        (
            "b",
            "UPDATE aggregate_events SET payload = '{\"secret\":1}' WHERE stream = 'todo:b'",
        ),
        (
            "c",
            "UPDATE aggregate_events SET name = 'unheard' WHERE stream = 'todo:c'",
        ),
        (
            "d",
            "UPDATE aggregate_events SET version = 9 WHERE stream = 'todo:d'",
        ),
        (
            "e",
            "UPDATE aggregate_events SET sequence = 2 WHERE stream = 'todo:e'",
        ),
    ];
    for (id, sql) in corrupted {
        create(http, id).await;
        service.databases.execute(In::Main, sql).await;
        for response in [
            http.send(&format!("GET /aggregates/todos/{id}")).await,
            rename(http, id, "x", "").await,
        ] {
            let HttpResponse { status, body, .. } = response;
            assert_eq!(status, 500, "{body}");
            assert!(body.contains(&format!("of `todo:{id}`")), "{body}");
            let sequence = if id == "e" { "event 2" } else { "event 1" };
            assert!(body.contains(sequence), "{body}");
            assert!(!body.contains("secret"), "{body}");
        }
    }
    if backend == Backend::Sqlite {
        // On SQLite, a column may contain a value of any type.
        for sql in [
            "UPDATE aggregate_events SET payload = x'FF00' WHERE stream = 'todo:f'",
            "UPDATE aggregate_events SET name = x'FF' WHERE stream = 'todo:f'",
            "UPDATE aggregate_events SET version = 99999999999 WHERE stream = 'todo:f'",
        ] {
            let _exists = http
                .json(
                    "POST /aggregates/todos",
                    r#"{"id":"f","user_id":"a","task":"b"}"#,
                )
                .await;
            service.databases.execute(In::Main, sql).await;
            let response = service.get("/aggregates/todos/f").await;
            assert_eq!(response.status, 500);
            assert!(
                response.body.contains("event 1 of `todo:f`"),
                "{response:?}"
            );
        }
    }
    assert_eq!(rename(http, "good", "still", "").await.status, 200);
    assert!(leases(http).await.is_empty());
}

async fn loading_reads_the_snapshot_and_only_later_events(backend: Backend) {
    let databases = std::sync::Arc::new(crate::support::Databases::new(backend).await);
    let settings = [("ROCKET_SNAPSHOT_INTERVAL", "5")];
    let service = Service::on(databases, &settings).await;
    let http = &service.http;
    create(http, "milk").await;
    for number in 2..=12 {
        rename(http, "milk", &format!("task {number}"), "").await;
    }
    let snapshots = "SELECT stream || ' ' || sequence FROM aggregate_snapshots";
    let taken = service.databases.texts(In::Main, snapshots).await;
    assert_eq!(taken, ["todo:milk 10"]);
    // Events that the snapshot covers are no longer read.
    let forget = "UPDATE aggregate_events SET payload = 'none' WHERE sequence <= 10";
    service.databases.execute(In::Main, forget).await;
    let todo: Value = service.get("/aggregates/todos/milk").await.json();
    assert_eq!(
        (&todo["task"], &todo["version"]),
        (&json!("task 12"), &json!(12))
    );
    // An unreadable snapshot is ignored. Here the events cannot be read either.
    let spoil = "UPDATE aggregate_snapshots SET state = '[]'";
    service.databases.execute(In::Main, spoil).await;
    let response = service.get("/aggregates/todos/milk").await;
    assert_eq!(response.status, 500);
    assert!(response.body.contains("event 1 of"), "{response:?}");
    let mend =
        "UPDATE aggregate_events SET name = 'renamed', version = 2, payload = '{\"task\":\"x\"}'";
    service.databases.execute(In::Main, mend).await;
    let todo: Value = service.get("/aggregates/todos/milk").await.json();
    assert_eq!((&todo["task"], &todo["version"]), (&json!("x"), &json!(12)));
}

async fn an_operator_frees_a_lease(backend: Backend) {
    let service = Service::start(backend).await;
    let http = &service.http;
    create(http, "milk").await;
    let slow = http.clone();
    let slow =
        tokio::spawn(async move { rename(&slow, "milk", "slow", "delay=4000@loaded").await });
    let mut held = Vec::new();
    crate::support::eventually("the todo is leased", async || {
        held = leases(http).await;
        !held.is_empty()
    })
    .await;
    assert_eq!(held[0]["key"], "todo:milk");
    assert_eq!(held[0]["wanted"], false);
    assert!(held[0]["owner"].as_str().unwrap().contains("pid"));
    assert!(held[0]["age_ms"].as_i64().unwrap() < 10_000);
    assert!(held[0]["expires_in_ms"].as_i64().unwrap() > 20_000);
    let token = held[0]["token"].as_str().unwrap();
    let freed = http.send(&format!("DELETE /leases/{token}")).await;
    assert_eq!(freed.status, 204);
    let again = http.send(&format!("DELETE /leases/{token}")).await;
    assert_eq!(
        (again.status, again.kind().as_str()),
        (404, "no-such-lease")
    );
    // The holder of the lease is refused.
    let response = slow.await.unwrap();
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert_eq!(events(http, "milk").await.len(), 1);
}

on_each_backend!(
    a_todo_is_created_only_once,
    a_todo_is_completed_only_once,
    if_match_requires_the_current_version,
    several_todos_are_completed_together_or_not_at_all,
    lists_are_paged,
    invalid_ids_are_refused_and_unusual_ones_work,
    an_older_event_loads_through_its_upcaster,
    a_corrupt_event_blocks_only_its_stream,
    loading_reads_the_snapshot_and_only_later_events,
    an_operator_frees_a_lease,
);
