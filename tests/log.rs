//! The log of the service. Each line about a request carries the request's id, and no line above
//! debug level contains a statement.

use std::sync::Arc;

use rocket::serde::json::{Value, serde_json};

use crate::aggregates::{create, rename};
use crate::support::{Backend, Databases, Service, Starting, eventually};

async fn service(backend: Backend, variables: &[(&str, &str)]) -> Service {
    let databases = Arc::new(Databases::new(backend).await);
    Service::on(databases, variables).await
}

/// The lines that are JSON objects.
fn objects(log: &str) -> Vec<Value> {
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

async fn a_log_line_carries_its_request(backend: Backend) {
    let filter = ("RUST_LOG", "rocket_tx=debug,rocket=warn");
    let service = service(backend, &[("ROCKET_LOG_FORMAT", "json"), filter]).await;
    let response = service.new_todo("a", "respond=502").await;
    assert_eq!(response.summary(), (502, Some("rolled-back")));
    let request = response.header("x-request-id").unwrap();
    let lines = objects(&service.log());
    let settled = lines
        .iter()
        .find(|line| line["message"] == "settled" && line["request"] == request)
        .unwrap_or_else(|| panic!("{}", service.log()));
    let spans = settled["spans"].as_array().unwrap();
    let names: Vec<&str> = spans
        .iter()
        .map(|span| span["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["request", "settle"]);
    let span = &spans[0];
    assert_eq!(span["id"], request);
    assert_eq!(span["method"], "POST");
    assert_eq!(span["route"], "todos::create");
    assert_eq!(span["outcome"], "rolled-back");
    assert_eq!(span["verdict"], "status 502");
    assert_eq!(span["status"], 502);
}

async fn a_warning_carries_its_request(backend: Backend) {
    let variables = [
        ("ROCKET_LOG_FORMAT", "json"),
        ("ROCKET_SLOW_TRANSACTION", "50ms"),
    ];
    let service = service(backend, &variables).await;
    let response = service.new_todo("a", "delay=100").await;
    let request = response.header("x-request-id").unwrap();
    let lines = objects(&service.log());
    let warned = lines.iter().find(|line| {
        let text = line["message"].as_str().unwrap_or_default();
        text.contains("`slow_transaction`")
    });
    let warned = warned.unwrap_or_else(|| panic!("{}", service.log()));
    assert_eq!(warned["level"], "WARN");
    assert_eq!(warned["route"], "todos::create");
    assert_eq!(warned["guard"], "Begin<Main>");
    assert_eq!(warned["request"], request);
}

/// A request that hangs is not settled yet. It is warned about once per transaction while it hangs.
async fn a_hanging_request_is_warned_about_once(backend: Backend) {
    let service = service(backend, &[("ROCKET_SLOW_TRANSACTION", "200ms")]).await;
    let hanging = service.new_todo("a", "delay=4000");
    let warned = async {
        eventually("the warning is logged", async || {
            service.log().contains("still outstanding")
        })
        .await;
        let registry: Value = service.get("/registry").await.json();
        registry["outstanding"].as_array().unwrap().len()
    };
    let (response, outstanding) = rocket::futures::future::join(hanging, warned).await;
    assert_eq!(outstanding, 2, "both transactions are still outstanding");
    assert_eq!(response.status, 201);
    let log = service.log();
    assert_eq!(log.matches("`slow_transaction`").count(), 2, "{log}");
    for field in [
        "route=\"todos::create\"",
        "guard=\"Begin<Main>\"",
        "guard=\"Begin<Audit>\"",
    ] {
        assert!(log.contains(field), "{field}: {log}");
    }
}

/// Responses refer to the log by the id of the request, so the log must contain it.
async fn the_log_of_a_failure_contains_its_request_id(backend: Backend) {
    let service = service(backend, &[]).await;
    for fault in ["panic", "respond=500", "respond=502", "leak=10"] {
        let response = service.new_todo("a", fault).await;
        let request = response.header("x-request-id").unwrap();
        let log = service.log();
        let line = log.lines().find(|line| line.contains(request));
        let line = line.unwrap_or_else(|| panic!("{fault}: {request} is not in {log}"));
        assert!(line.contains("todos::create"), "{line}");
    }
    let before = service.log();
    assert_eq!(service.new_todo("", "").await.status, 422);
    assert!(!service.log()[before.len()..].contains("could not be served"));
}

/// Statements that are slow or fail are not logged either.
async fn no_statement_is_logged_above_debug(backend: Backend) {
    let service = service(backend, &[("RUST_LOG", "info")]).await;
    for fault in [
        "swallow",
        "commit",
        "panic",
        "respond=502",
        "leak=10",
        "disconnect",
        "delay=1100",
    ] {
        service.new_todo("a secret title", fault).await;
    }
    create(&service.http, "milk").await;
    rename(&service.http, "milk", "a secret task", "expire-lease").await;
    if backend == Backend::Sqlite {
        // The statement waits for another process for longer than a second.
        let mut other = service.databases.sqlite(crate::support::In::Main).await;
        sqlx::raw_sql("BEGIN IMMEDIATE")
            .execute(&mut other)
            .await
            .unwrap();
        let waiting = service.new_todo("a secret title", "");
        let unlock = async {
            rocket::tokio::time::sleep(std::time::Duration::from_millis(1_300)).await;
            sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        };
        let (response, ()) = rocket::futures::future::join(waiting, unlock).await;
        assert_eq!(response.status, 201, "{response:?}");
    }
    let log = service.log();
    for word in ["secret", "INSERT", "UPDATE", "SELECT", "BEGIN"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

async fn an_unknown_log_format_stops_the_launch(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let variables = [("ROCKET_LOG_FORMAT", "xml")];
    let refused = Starting::new(databases, &[], &variables).launched().await;
    let Err((status, log)) = refused else {
        panic!("the service launched");
    };
    assert!(!status.success());
    assert!(log.contains("`log_format`"), "{log}");
}

on_each_backend!(
    a_log_line_carries_its_request,
    a_warning_carries_its_request,
    a_hanging_request_is_warned_about_once,
    the_log_of_a_failure_contains_its_request_id,
    no_statement_is_logged_above_debug,
    an_unknown_log_format_stops_the_launch,
);

mod postgres_only {
    use super::*;

    /// The handler ignores the error of a statement, and responds with a success.
    #[rocket::async_test]
    async fn the_reason_of_a_refused_commit_is_logged() {
        let service = service(Backend::Postgres, &[("ROCKET_LOG_FORMAT", "json")]).await;
        let response = service.new_todo("a", "swallow").await;
        assert_eq!(response.summary(), (500, Some("rolled-back")));
        let request = response.header("x-request-id").unwrap();
        let lines = objects(&service.log());
        let reason = lines.iter().find(|line| {
            let error = line["error"].as_str().unwrap_or_default();
            line["request"] == request && error.contains("an earlier statement failed")
        });
        let reason = reason.unwrap_or_else(|| panic!("{}", service.log()));
        assert_eq!(reason["level"], "WARN");
    }
}
