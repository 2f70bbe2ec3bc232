//! Invalid input of any kind gets a clear error, never a 500, and stores nothing.

use rocket::serde::json::Value;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::TcpStream;
use rocket::tokio::time::{Duration, timeout};

use crate::support::{Backend, HttpResponse, In, Service};

const JSON: &str = "application/json";

/// Checks that the response is an RFC 9457 problem with the id of the request. Returns its detail.
fn problem(response: &HttpResponse, context: &str) -> String {
    assert_eq!(
        response.header("content-type"),
        Some("application/problem+json"),
        "{context}: {response:?}"
    );
    let problem: Value = response.json();
    assert_eq!(problem["status"], response.status, "{context}");
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .starts_with("urn:rocket_tx:problem:"),
        "{context}"
    );
    assert!(!problem["title"].as_str().unwrap().is_empty(), "{context}");
    assert_eq!(
        problem["instance"].as_str(),
        response.header("x-request-id"),
        "{context}"
    );
    assert_eq!(problem["outcome"].as_str(), response.outcome(), "{context}");
    assert_ne!(response.outcome(), Some("committed"), "{context}");
    for secret in ["SELECT", "INSERT", "sqlite", "postgres", "/tmp", ".db"] {
        assert!(
            !response.body.contains(secret),
            "{context}: the response contains {secret}: {}",
            response.body
        );
    }
    problem["detail"].as_str().unwrap().to_owned()
}

/// Starts a service that has stored only one todo, with the id 1, and its row in the audit.
async fn start(backend: Backend) -> Service {
    let service = Service::start(backend).await;
    assert_eq!(service.new_todo("the only one", "").await.status, 201);
    service
}

async fn assert_unchanged(service: Service) {
    let todos = service
        .databases
        .texts(In::Main, "SELECT title FROM todos")
        .await;
    assert_eq!(todos, ["the only one"]);
    let lines = service
        .databases
        .texts(In::Audit, "SELECT action FROM audit")
        .await;
    assert_eq!(lines, ["todo created"]);
    service.stop().await;
}

async fn send(
    service: &Service,
    operation: &str,
    kind: Option<&str>,
    body: Vec<u8>,
) -> HttpResponse {
    let mut request = service.http.request(operation).body(body);
    if let Some(kind) = kind {
        request = request.header("Content-Type", kind);
    }
    HttpResponse::of(request).await
}

async fn a_body_that_cannot_be_parsed_is_refused(backend: Backend) {
    let service = start(backend).await;
    let large = format!(r#"{{"title": "{}"}}"#, "x".repeat(70_000));
    for operation in ["POST /todos", "PATCH /todos/1"] {
        for (body, kind, status) in [
            (&b""[..], Some(JSON), 400),
            (b"milk", Some(JSON), 400),
            (b"{\"title\": \"milk\"", Some(JSON), 400),
            (b"{\"title\": \"milk\"} and more", Some(JSON), 400),
            (b"{\"title\": \"\xff\xfe\"}", Some(JSON), 400),
            (b"{\"title\": \"\\ud800\"}", Some(JSON), 400),
            (b"{'title': 'milk'}", Some(JSON), 400),
            (large.as_bytes(), Some(JSON), 413),
            (b"{\"title\": \"milk\"}", Some("text/plain"), 415),
            (
                b"{\"title\": \"milk\"}",
                Some("application/x-www-form-urlencoded"),
                415,
            ),
            (b"{\"title\": \"milk\"}", Some("nonsense"), 415),
            (b"{\"title\": \"milk\"}", None, 415),
        ] {
            let response = send(&service, operation, kind, body.to_vec()).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!(
                response.status, status,
                "{operation} {shown} as {kind:?}: {}",
                response.body
            );
            problem(&response, &shown);
        }
        let json = send(
            &service,
            operation,
            Some("application/json; charset=utf-8"),
            b"[]".to_vec(),
        )
        .await;
        assert_eq!(
            json.status, 422,
            "a charset in the content type is accepted"
        );
    }
    assert_unchanged(service).await;
}

async fn an_invalid_body_is_refused(backend: Backend) {
    let service = start(backend).await;
    let long = format!(r#"{{"title": "{}"}}"#, "x".repeat(501));
    for (body, names) in [
        (r#"{"title": ""}"#, "`title` must not be empty"),
        (r#"{"title": " \t "}"#, "`title` must not be empty"),
        (long.as_str(), "`title` must have at most 500 characters"),
        (
            r#"{"title": "a\u0000b"}"#,
            "`title` must not contain control characters",
        ),
        (
            r#"{"title": "a\nb"}"#,
            "`title` must not contain control characters",
        ),
        (r#"{"title": 7}"#, "title"),
        (r#"{"title": ["milk"]}"#, "title"),
        (r#"{"title": "milk", "completed": "yes"}"#, "completed"),
        (r#"{"title": "milk", "completed": 1}"#, "completed"),
        (r#"{"title": "milk", "order": "first"}"#, "order"),
        (r#"{"title": "milk", "order": 1.5}"#, "order"),
        (
            r#"{"title": "milk", "order": 9223372036854775808}"#,
            "order",
        ),
        (r#"{"title": "milk", "order": 9007199254740992}"#, "order"),
        (r#"{"title": "milk", "order": -9007199254740992}"#, "order"),
        (
            r#"{"title": "milk", "order": -9223372036854775809}"#,
            "order",
        ),
        (r#"{"title": "milk", "order": 9007199254740993.0}"#, "order"),
        (r#"{"title": "milk", "order": 1e300}"#, "order"),
        (r#"{"title": "milk", "order": true}"#, "order"),
        (r#"{"title": "milk", "title": "tea"}"#, "title"),
        ("[1]", "the body must be an object"),
        (r#" ["milk", true, 7]"#, "the body must be an object"),
        ("\"milk\"", "the body must be an object"),
        ("7", "the body must be an object"),
    ] {
        for operation in ["POST /todos", "PATCH /todos/1"] {
            let response = service.http.json(operation, body).await;
            assert_eq!(
                response.status, 422,
                "{operation} {body}: {}",
                response.body
            );
            let detail = problem(&response, body);
            assert!(detail.contains(names), "{operation} {body}: {detail}");
        }
    }
    for (body, names) in [
        ("{}", "title"),
        (r#"{"title": null}"#, "title"),
        ("null", "the body must be an object"),
    ] {
        let response = service.http.json("POST /todos", body).await;
        assert_eq!(response.status, 422, "{body}: {}", response.body);
        assert!(
            problem(&response, body).contains(names),
            "{body}: {}",
            response.body
        );
    }
    assert_unchanged(service).await;
}

async fn an_unknown_address_gets_404(backend: Backend) {
    let service = start(backend).await;
    let methods = ["GET", "PATCH", "DELETE"];
    for id in [
        "2",
        "0",
        "-1",
        "007x",
        "1.0",
        "x",
        "9223372036854775807",
        "9223372036854775808",
        "99999999999999999999999",
        "%31%00",
        "%FF",
        "1%2Fshare",
        "%E2%98%83",
        "1;",
        "1'--",
    ] {
        for method in methods {
            let operation = format!("{method} /todos/{id}");
            let response = send(
                &service,
                &operation,
                Some(JSON),
                b"{\"completed\": true}".to_vec(),
            )
            .await;
            assert_eq!(response.status, 404, "{operation}: {}", response.body);
            problem(&response, &operation);
        }
        let operation = format!("POST /todos/{id}/share");
        let response = service.http.send(&operation).await;
        assert_eq!(response.status, 404, "{operation}: {}", response.body);
        problem(&response, &operation);
    }
    for path in [
        "/todo",
        "/todos/1/2",
        "/todos/1/share/2",
        "/registry/1",
        "/%00",
        "/%FF",
        "/audit/1",
    ] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let operation = format!("{method} {path}");
            let response = service.http.send(&operation).await;
            assert_eq!(response.status, 404, "{operation}: {}", response.body);
            problem(&response, &operation);
        }
    }
    assert_unchanged(service).await;
}

async fn an_unsupported_method_gets_405(backend: Backend) {
    let service = start(backend).await;
    for (path, has) in [
        ("/todos", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("/todos/1", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("/todos/1/share", "POST, OPTIONS"),
        ("/audit", "GET, HEAD, OPTIONS"),
        ("/registry", "GET, HEAD, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
        ("/downstream", "POST, OPTIONS"),
    ] {
        let allowed = |response: &HttpResponse| {
            let allow = response.header("allow").unwrap_or_default().to_owned();
            let mut sorted: Vec<String> = allow.split(", ").map(str::to_owned).collect();
            sorted.sort();
            sorted
        };
        let mut expected: Vec<String> = has.split(", ").map(str::to_owned).collect();
        expected.sort();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"] {
            if has.contains(method) {
                continue;
            }
            let operation = format!("{method} {path}");
            let response = service.http.send(&operation).await;
            assert_eq!(response.status, 405, "{operation}: {}", response.body);
            assert_eq!(allowed(&response), expected, "{operation}");
            problem(&response, &operation);
        }
        let response = service.http.send(&format!("OPTIONS {path}")).await;
        assert_eq!(response.status, 204, "OPTIONS {path}");
        assert_eq!(allowed(&response), expected, "OPTIONS {path}");
        if has.contains("GET") {
            let head = service.http.send(&format!("HEAD {path}")).await;
            let get = service.http.send(&format!("GET {path}")).await;
            assert_eq!(head.status, get.status, "{path}");
            assert_eq!(
                head.header("content-type"),
                get.header("content-type"),
                "{path}"
            );
            assert_eq!(head.body, "", "{path}");
        }
    }
    assert_unchanged(service).await;
}

async fn an_invalid_query_is_refused(backend: Backend) {
    let service = start(backend).await;
    for (query, names) in [
        ("limit=0", "`limit` must be from 1 to 200"),
        ("limit=201", "`limit` must be from 1 to 200"),
        ("limit=-1", "`limit` must be from 1 to 200"),
        ("limit=x", "`limit` must be a whole number"),
        ("limit=", "`limit` must be a whole number"),
        ("limit=1.5", "`limit` must be a whole number"),
        (
            "limit=9223372036854775808",
            "`limit` must be a whole number",
        ),
        ("limit=%FF", "`limit` must be a whole number"),
        ("after=x", "`after` must be a whole number"),
        ("after=%00", "`after` must not contain control characters"),
        (
            "after=99999999999999999999",
            "`after` must be a whole number",
        ),
    ] {
        let operation = format!("GET /audit?{query}");
        let response = service.http.send(&operation).await;
        assert_eq!(response.status, 422, "{operation}: {}", response.body);
        assert_eq!(problem(&response, &operation), names, "{operation}");
    }
    for query in [
        "",
        "limit=200",
        "limit=1&limit=2",
        "after=-5",
        "unknown=1",
        "&&=&",
    ] {
        let operation = format!("GET /audit?{query}");
        assert_eq!(
            service.http.send(&operation).await.status,
            200,
            "{operation}"
        );
    }
    assert_unchanged(service).await;
}

async fn an_invalid_fault_is_refused(backend: Backend) {
    let service = start(backend).await;
    for fault in [
        "boom",
        "respond",
        "respond=42",
        "respond=600",
        "delay=-1",
        "leak=x",
        "crash",
        "panic=1",
        "delay=5,boom",
    ] {
        for operation in [
            "POST /todos",
            "GET /todos",
            "GET /audit",
            "POST /todos/1/share",
            "PUT /todos",
        ] {
            let request = service
                .http
                .request(operation)
                .header("X-Fault", fault)
                .body(r#"{"title": "x"}"#);
            let response = HttpResponse::of(request.header("Content-Type", JSON)).await;
            assert_eq!(
                response.status, 422,
                "{operation} with {fault}: {}",
                response.body
            );
            assert!(
                problem(&response, operation).contains("X-Fault"),
                "{}",
                response.body
            );
        }
        let response = service
            .http
            .send(&format!("DELETE /todos?fault={fault}"))
            .await;
        assert_eq!(response.status, 422, "fault={fault}: {}", response.body);
    }
    // Several `X-Fault` headers are read as one list.
    let request = service
        .http
        .request("DELETE /todos")
        .header("X-Fault", "delay=1")
        .header("X-Fault", "respond=418");
    assert_eq!(
        HttpResponse::of(request).await.summary(),
        (418, Some("rolled-back"))
    );
    assert_unchanged(service).await;
}

/// Input that is not HTTP ends its own connection and affects nothing else.
async fn a_connection_that_does_not_send_http_is_closed(backend: Backend) {
    let service = start(backend).await;
    let address = service.http.base.trim_start_matches("http://").to_owned();
    let long = format!(
        "GET /todos?{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "x".repeat(600_000)
    );
    let many: String = (0..300).map(|n| format!("X-{n}: x\r\n")).collect();
    let many = format!("GET /todos HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    for sent in [
        "\r\n\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /todos HTTP/9.9\r\n\r\n",
        "GET todos HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /todos HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST /todos HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        "POST /todos HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\u{0}\u{1}\u{2}",
        &long,
        &many,
    ] {
        let mut client = TcpStream::connect(&address).await.unwrap();
        // The service may close the connection before it has read everything.
        let _ = client.write_all(sent.as_bytes()).await;
        let _ = client.shutdown().await;
        let mut response = Vec::new();
        let read = timeout(Duration::from_secs(60), client.read_to_end(&mut response)).await;
        let shown = &sent[..sent.len().min(60)];
        assert!(
            read.is_ok(),
            "{shown:?} gets no response, and the connection stays open"
        );
        let response = String::from_utf8_lossy(&response);
        assert!(!response.starts_with("HTTP/1.1 5"), "{shown:?}: {response}");
        assert!(!response.starts_with("HTTP/1.1 2"), "{shown:?}: {response}");
    }
    assert_eq!(service.get("/todos").await.status, 200);
    assert_unchanged(service).await;
}

on_each_backend!(
    a_body_that_cannot_be_parsed_is_refused,
    an_invalid_body_is_refused,
    an_unknown_address_gets_404,
    an_unsupported_method_gets_405,
    an_invalid_query_is_refused,
    an_invalid_fault_is_refused,
    a_connection_that_does_not_send_http_is_closed,
);
