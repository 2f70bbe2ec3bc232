//! `Idempotency-Key`: a request that is sent twice is done once.

mod kills;
mod library;
mod misuse;
mod races;
mod unknown;

use std::sync::Arc;

use rocket::serde::json::Value;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::TcpListener;

use crate::support::{Backend, Databases, HttpResponse, In, Service, eventually};

/// Sends a request with a key. `line` is `METHOD /path`; an empty `body` is not sent.
async fn send(service: &Service, line: &str, body: &str, key: &str, fault: &str) -> HttpResponse {
    HttpResponse::of(request(service, line, body, key, fault)).await
}

fn request(
    service: &Service,
    line: &str,
    body: &str,
    key: &str,
    fault: &str,
) -> reqwest::RequestBuilder {
    let request = service.http.request(line).header("Idempotency-Key", key);
    let request = match fault {
        "" => request,
        fault => request.header("X-Fault", fault),
    };
    match body {
        "" => request,
        body => request
            .header("Content-Type", "application/json")
            .body(body.to_owned()),
    }
}

async fn counts(databases: &Databases) -> (usize, usize) {
    let todos = databases.texts(In::Main, "SELECT title FROM todos").await;
    let audit = databases.texts(In::Audit, "SELECT action FROM audit").await;
    (todos.len(), audit.len())
}

/// Asserts that `again` is `first`, sent again.
fn is_replay(first: &HttpResponse, again: &HttpResponse) {
    assert_eq!(
        again.header("idempotency-replayed"),
        Some("true"),
        "{again:?}"
    );
    assert_eq!(first.header("idempotency-replayed"), None, "{first:?}");
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!(again.outcome(), Some("committed"));
    for name in ["location", "etag", "content-type", "content-length"] {
        assert_eq!(first.header(name), again.header(name), "{name}");
    }
    assert_ne!(first.header("x-request-id"), again.header("x-request-id"));
}

async fn a_repeated_request_is_done_once_and_gets_the_same_response(backend: Backend) {
    let service = Service::start(backend).await;
    let new = r#"{"title":"once"}"#;
    let first = send(&service, "POST /todos", new, "k-1", "").await;
    assert_eq!(first.summary(), (201, Some("committed")), "{first:?}");
    for key in ["k-1", "\"k-1\""] {
        let again = send(&service, "POST /todos", new, key, "").await;
        is_replay(&first, &again);
        assert_eq!(again.header("access-control-allow-origin"), Some("*"));
    }
    assert_eq!(counts(&service.databases).await, (1, 1));
    // Another process sends it too.
    let other = Service::on(Arc::clone(&service.databases), &[]).await;
    is_replay(&first, &send(&other, "POST /todos", new, "k-1", "").await);
    // Another key, and no key, are other requests.
    let other_key = send(&other, "POST /todos", new, "k-2", "").await;
    assert_eq!(other_key.header("idempotency-replayed"), None);
    assert_eq!(service.new_todo("once", "").await.status, 201);
    assert_eq!(counts(&service.databases).await, (3, 3));
    other.stop().await;
    service.stop().await;
}

async fn each_change_of_the_service_can_be_repeated(backend: Backend) {
    let service = Service::start(backend).await;
    let todo: Value = service.new_todo("milk", "").await.json();
    let path = format!("/todos/{}", todo["id"]);
    let aggregate = r#"{"id":"a","user_id":"u","task":"t"}"#;
    // In this order, each request alone would fail when it is sent a second time, or change
    // something again.
    for (number, (line, body)) in [
        (format!("PATCH {path}"), r#"{"title":"bread"}"#),
        (format!("POST {path}/share"), ""),
        (format!("DELETE {path}"), ""),
        ("DELETE /todos".to_owned(), ""),
        ("POST /aggregates/todos".to_owned(), aggregate),
        (
            "POST /aggregates/todos/a/rename".to_owned(),
            r#"{"task":"u"}"#,
        ),
        ("POST /aggregates/todos/a/complete".to_owned(), ""),
        (
            "POST /aggregates/todos/complete".to_owned(),
            r#"{"ids":["a"]}"#,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key {number}").replace(' ', "-");
        let first = send(&service, &line, body, &key, "").await;
        assert!(first.status < 300, "{line}: {first:?}");
        let before = counts(&service.databases).await;
        is_replay(&first, &send(&service, &line, body, &key, "").await);
        assert_eq!(counts(&service.databases).await, before, "{line}");
    }
    // The version has moved on, and the same request with `If-Match` still gets its response.
    let rename = || {
        let line = "POST /aggregates/todos/a/rename";
        let rename = request(&service, line, r#"{"task":"v"}"#, "renamed", "");
        rename.header("If-Match", r#""3""#)
    };
    let first = HttpResponse::of(rename()).await;
    assert_eq!(first.status, 200, "{first:?}");
    is_replay(&first, &HttpResponse::of(rename()).await);
    service.stop().await;
}

/// Asserts that the contract names this type of problem, for this status of `POST /todos`.
async fn is_in_the_contract(service: &Service, problem: &HttpResponse) {
    let contract: Value = service.get("/openapi.json").await.json();
    let status = problem.status.to_string();
    let reference = &contract["paths"]["/todos"]["post"]["responses"][&status]["$ref"];
    let name = reference.as_str().unwrap().rsplit('/').next().unwrap();
    let about = &contract["components"]["responses"][name]["description"];
    let kind = format!("`urn:rocket_tx:problem:{}`", problem.kind());
    assert!(about.as_str().unwrap().contains(&kind), "{kind}: {about}");
}

async fn a_key_with_other_content_is_refused(backend: Backend) {
    let service = Service::start(backend).await;
    let long = |last: &str| {
        format!(
            r#"{{"title":"long","extra":"{}{last}"}}"#,
            "x".repeat(2_000)
        )
    };
    for (key, first, line, other) in [
        (
            "short",
            r#"{"title":"a"}"#.to_owned(),
            "POST /todos",
            r#"{"title":"b"}"#.to_owned(),
        ),
        (
            "query",
            r#"{"title":"a"}"#.to_owned(),
            "POST /todos?x=1",
            r#"{"title":"a"}"#.to_owned(),
        ),
        ("long", long("1"), "POST /todos", long("2")),
    ] {
        let created = send(&service, "POST /todos", &first, key, "").await;
        assert_eq!(created.status, 201, "{key}: {created:?}");
        let refused = send(&service, line, &other, key, "").await;
        assert_eq!(refused.status, 422, "{key}: {refused:?}");
        assert_eq!(refused.kind(), "idempotency-key-reused", "{key}");
        is_in_the_contract(&service, &refused).await;
        is_replay(
            &created,
            &send(&service, "POST /todos", &first, key, "").await,
        );
    }
    assert_eq!(counts(&service.databases).await, (3, 3));
    service.stop().await;
}

async fn a_request_that_was_rolled_back_can_be_sent_again(backend: Backend) {
    let service = Service::start(backend).await;
    let new = r#"{"title":"retried"}"#;
    for fault in [
        "respond=502",
        "panic",
        "doom",
        "commit",
        "swallow",
        "leak=1",
    ] {
        let failed = send(&service, "POST /todos", new, "k", fault).await;
        assert!(failed.status >= 400, "{fault}: {failed:?}");
        assert_eq!(failed.outcome(), Some("rolled-back"), "{fault}");
        assert_eq!(counts(&service.databases).await, (0, 0), "{fault}");
    }
    let done = send(&service, "POST /todos", new, "k", "").await;
    assert_eq!(done.summary(), (201, Some("committed")), "{done:?}");
    assert_eq!(done.header("idempotency-replayed"), None);
    is_replay(&done, &send(&service, "POST /todos", new, "k", "").await);
    assert_eq!(counts(&service.databases).await, (1, 1));
    service.stop().await;
}

/// A key that is kept beside the transaction gets one of these cases wrong.
async fn a_request_whose_process_crashed_is_done_once(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let new = r#"{"title":"once"}"#;
    for (number, fault) in ["crash=before-commit", "crash=after-commit"]
        .iter()
        .enumerate()
    {
        let mut service = Service::on(Arc::clone(&databases), &[]).await;
        let broken = request(&service, "POST /todos", new, fault, fault)
            .send()
            .await;
        assert!(broken.is_err(), "{fault}: {broken:?}");
        service.ended().await;
        let service = Service::on(Arc::clone(&databases), &[]).await;
        let mut last = None;
        eventually("the request is answered", async || {
            let response = send(&service, "POST /todos", new, fault, "").await;
            let is_answered = response.status == 201;
            last = Some(response);
            is_answered
        })
        .await;
        let replayed = last.unwrap().header("idempotency-replayed").is_some();
        assert_eq!(replayed, *fault == "crash=after-commit");
        assert_eq!(
            counts(&databases).await,
            (number + 1, number + 1),
            "{fault}"
        );
        service.stop().await;
    }
}

/// The databases commit one after the other, and the one with the keys commits last.
async fn after_a_crash_between_two_commits_only_the_database_with_the_keys_is_changed_once(
    backend: Backend,
) {
    let databases = Arc::new(Databases::new(backend).await);
    let variables = [("ROCKET_ATOMIC_COMMIT", "off")];
    let mut service = Service::on(Arc::clone(&databases), &variables).await;
    let new = r#"{"title":"once"}"#;
    let crash = request(&service, "POST /todos", new, "k", "crash=between-commits");
    assert!(crash.send().await.is_err());
    service.ended().await;
    assert_eq!(counts(&databases).await, (0, 1));
    let service = Service::on(Arc::clone(&databases), &variables).await;
    eventually("the request is answered", async || {
        send(&service, "POST /todos", new, "k", "").await.status == 201
    })
    .await;
    assert_eq!(counts(&databases).await, (1, 2));
    service.stop().await;
}

async fn a_request_in_flight_is_reported_as_such(backend: Backend) {
    let service = Service::start(backend).await;
    let new = r#"{"title":"slow"}"#;
    let slow = request(&service, "POST /todos", new, "k", "delay=4000");
    let slow = rocket::tokio::spawn(HttpResponse::of(slow));
    eventually("the request has begun", async || {
        let registry: Value = service.get("/registry").await.json();
        registry["outstanding"]
            .as_array()
            .is_some_and(|it| it.len() > 1)
    })
    .await;
    let twin = send(&service, "POST /todos", new, "k", "").await;
    assert_eq!(twin.status, 409, "{twin:?}");
    assert_eq!(twin.kind(), "idempotency-key-in-flight");
    assert_eq!(twin.header("retry-after"), Some("1"));
    is_in_the_contract(&service, &twin).await;
    let first = slow.await.unwrap();
    assert_eq!(first.status, 201);
    is_replay(&first, &send(&service, "POST /todos", new, "k", "").await);
    assert_eq!(counts(&service.databases).await, (1, 1));
    service.stop().await;
}

/// Both are sent at the same time, to one process or to two.
async fn twins_have_one_effect(backend: Backend) {
    let one = Service::start(backend).await;
    let two = Service::on(Arc::clone(&one.databases), &[]).await;
    for round in 0..20 {
        let key = format!("round-{round}");
        let new = r#"{"title":"twin"}"#;
        let twins =
            [&one, &one, &two, &two].map(|service| send(service, "POST /todos", new, &key, ""));
        let responses = rocket::futures::future::join_all(twins).await;
        let done: Vec<_> = responses.iter().filter(|it| it.status == 201).collect();
        assert!(!done.is_empty(), "{responses:?}");
        assert!(done.iter().all(|it| it.body == done[0].body), "{done:?}");
        assert_eq!(counts(&one.databases).await, (round + 1, round + 1));
    }
    two.stop().await;
    one.stop().await;
}

async fn a_malformed_or_repeated_key_is_refused(backend: Backend) {
    let service = Service::start(backend).await;
    let new = r#"{"title":"bad"}"#;
    for (key, kind) in [
        ("a b", "idempotency-key-malformed"),
        ("", "idempotency-key-malformed"),
        ("a,b", "idempotency-key-malformed"),
        ("\"a\";p", "idempotency-key-malformed"),
        (&"k".repeat(256), "idempotency-key-malformed"),
    ] {
        let refused = send(&service, "POST /todos", new, key, "").await;
        assert_eq!((refused.status, &*refused.kind()), (400, kind), "{key}");
        is_in_the_contract(&service, &refused).await;
    }
    let twice = request(&service, "POST /todos", new, "a", "").header("Idempotency-Key", "b");
    let twice = HttpResponse::of(twice).await;
    assert_eq!(
        (twice.status, &*twice.kind()),
        (400, "idempotency-key-repeated")
    );
    is_in_the_contract(&service, &twice).await;
    assert_eq!(counts(&service.databases).await, (0, 0));
    // The header has no effect on a request that only reads.
    for line in ["GET /todos", "HEAD /todos", "OPTIONS /todos"] {
        let plain = service.http.send(line).await;
        for key in ["a b", "k", "k"] {
            let read = send(&service, line, "", key, "").await;
            assert_eq!(
                (read.status, &read.body),
                (plain.status, &plain.body),
                "{line}"
            );
            assert_eq!(read.header("idempotency-replayed"), None, "{line}");
        }
    }
    let longest = send(&service, "POST /todos", new, &"k".repeat(255), "").await;
    assert_eq!(longest.status, 201, "{longest:?}");
    service.stop().await;
}

/// Accepts requests, responds to each with 204, and returns the values of the header
/// `Idempotency-Key` of the first `count`.
async fn keys_received(listener: TcpListener, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    while keys.len() < count {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|it| it == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let key = head
            .lines()
            .find_map(|it| it.strip_prefix("idempotency-key: "));
        keys.push(key.unwrap_or("none").to_owned());
        let response = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        stream.write_all(response).await.unwrap();
    }
    keys
}

async fn another_service_gets_the_same_key_again(backend: Backend) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = rocket::tokio::spawn(keys_received(listener, 4));
    let databases = Arc::new(Databases::new(backend).await);
    let service = Service::on(databases, &[("ROCKET_DOWNSTREAM_URL", &url)]).await;
    let todo: Value = service.new_todo("shared", "").await.json();
    let share = format!("POST /todos/{}/share", todo["id"]);
    assert_eq!(
        send(&service, &share, "", "k", "respond=502").await.status,
        502
    );
    let first = send(&service, &share, "", "k", "").await;
    assert_eq!(first.status, 200, "{first:?}");
    is_replay(&first, &send(&service, &share, "", "k", "").await);
    assert_eq!(send(&service, &share, "", "other", "").await.status, 200);
    assert_eq!(service.http.send(&share).await.status, 200);
    let keys = received.await.unwrap();
    assert_eq!(keys[0], keys[1], "the repeated request sends the same key");
    assert_ne!(keys[0], keys[2]);
    assert_eq!((keys[0].len(), &*keys[3]), (64, "none"));
    service.stop().await;
}

on_each_backend!(
    another_service_gets_the_same_key_again,
    a_repeated_request_is_done_once_and_gets_the_same_response,
    each_change_of_the_service_can_be_repeated,
    a_key_with_other_content_is_refused,
    a_request_that_was_rolled_back_can_be_sent_again,
    a_request_whose_process_crashed_is_done_once,
    after_a_crash_between_two_commits_only_the_database_with_the_keys_is_changed_once,
    a_request_in_flight_is_reported_as_such,
    twins_have_one_effect,
    a_malformed_or_repeated_key_is_refused,
);
