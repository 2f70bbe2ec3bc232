//! Concurrent requests: which of them wait for each other, and which must not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::http::Status;
use rocket::serde::json::Value;
use rocket::tokio::io::AsyncWriteExt;
use rocket::tokio::net::TcpStream;
use rocket::tokio::sync::Notify;
use rocket::tokio::task::JoinSet;
use rocket::{State, get, post, routes};
use rocket_tx::{Begin, Error, Read, Settlement, Tx};

use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, In, Main, Service, Stage, eventually};

/// How many seconds a request waits for a connection. A busy machine does not delay requests that
/// much, so a request that takes this long was in a deadlock.
const PATIENT: &str = "60";
/// A request that took less than this has not waited until its `connect_timeout`.
const NO_WAIT: Duration = Duration::from_secs(45);

#[post("/main-audit/<text>")]
async fn main_audit(text: &str, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<(), Error> {
    note(&mut main, text).await?;
    note(&mut audit, text).await?;
    Ok(())
}

#[post("/audit-main/<text>")]
async fn audit_main(text: &str, mut audit: Tx<Audit>, mut main: Tx<Main>) -> Result<(), Error> {
    note(&mut main, text).await?;
    note(&mut audit, text).await?;
    Ok(())
}

#[post("/read-audit-main/<text>")]
async fn read_audit_main(
    text: &str,
    mut audit: Read<Audit>,
    mut main: Tx<Main>,
) -> Result<(), Error> {
    run(&mut audit, "SELECT 1").await?;
    note(&mut main, text).await?;
    Ok(())
}

#[post("/main-read-audit/<text>")]
async fn main_read_audit(
    text: &str,
    mut main: Tx<Main>,
    mut audit: Read<Audit>,
) -> Result<(), Error> {
    run(&mut audit, "SELECT 1").await?;
    note(&mut main, text).await?;
    Ok(())
}

#[post("/reads/<_>")]
async fn reads(mut main: Read<Main>, mut audit: Read<Audit>) -> Result<(), Error> {
    run(&mut main, "SELECT 1").await?;
    run(&mut audit, "SELECT 1").await?;
    Ok(())
}

#[post("/reads-reversed/<_>")]
async fn reads_reversed(mut audit: Read<Audit>, mut main: Read<Main>) -> Result<(), Error> {
    run(&mut main, "SELECT 1").await?;
    run(&mut audit, "SELECT 1").await?;
    Ok(())
}

#[post("/both/read-tx")]
fn read_then_tx(_read: Read<Main>, _tx: Tx<Main>) {}

#[post("/both/tx-read")]
fn tx_then_read(_tx: Tx<Main>, _read: Read<Main>) {}

#[post("/both/read-read")]
fn read_then_read(_one: Read<Main>, _other: Read<Main>) {}

#[post("/both/read-begin")]
async fn read_then_begin(_read: Read<Main>, main: Begin<Main>) -> Result<(), Error> {
    main.begin().await.map(drop)
}

/// A dropped `Read` and an unused `Begin` do not count as connections of the request.
#[post("/both/one-by-one")]
async fn one_by_one(read: Read<Main>, main: Begin<Main>) -> Result<(), Error> {
    drop(read);
    note(&mut *main.begin().await?, "after the read").await?;
    Ok(())
}

/// Holds its transaction until the test notifies it.
#[post("/hold")]
async fn hold(mut main: Tx<Main>, go_on: &State<Arc<Notify>>) -> Result<Status, Error> {
    note(&mut main, "held").await?;
    go_on.notified().await;
    Ok(Status::Created)
}

#[post("/write")]
async fn write(mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    Ok(Status::Created)
}

#[get("/count")]
async fn count(mut read: Read<Main>) -> Result<String, Error> {
    let count: i64 = rocket_tx::with_backend!(read, |db| {
        sqlx::query_scalar("SELECT count(*) FROM notes")
            .fetch_one(db)
            .await?
    });
    Ok(count.to_string())
}

/// A stage on which every pool has one connection.
async fn stage(backend: Backend, connect_timeout: &str) -> (Stage, Arc<Notify>) {
    let go_on = Arc::new(Notify::new());
    let managed = Arc::clone(&go_on);
    let settings = [
        ("databases.main.max_connections", "1"),
        ("databases.audit.max_connections", "1"),
        ("databases.main.connect_timeout", connect_timeout),
        ("databases.audit.connect_timeout", connect_timeout),
    ];
    let stage = Stage::with(backend, &settings, |rocket| {
        rocket
            .manage(managed)
            .mount(
                "/",
                routes![
                    main_audit,
                    audit_main,
                    read_audit_main,
                    main_read_audit,
                    reads,
                    reads_reversed,
                    read_then_tx,
                    tx_then_read,
                    read_then_read,
                    read_then_begin,
                    one_by_one,
                    hold,
                    write,
                    count
                ],
            )
            .attach(Settlement::new())
    })
    .await;
    (stage, go_on)
}

/// Sends both kinds of request from many clients. Requests in order of rank always succeed.
/// Requests in reverse order may get a response that asks them to retry. Returns the texts of the
/// successes.
async fn cross(stage: &Stage, in_order: &'static str, reversed: &'static str) -> Vec<String> {
    const CLIENTS: usize = 16;
    const ROUNDS: usize = 30;

    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let http = stage.http.clone();
        let path = if client % 2 == 0 { in_order } else { reversed };
        clients.spawn(async move {
            let mut kept = Vec::new();
            for round in 0..ROUNDS {
                let text = format!("{path}-{client}-{round}");
                let started = Instant::now();
                let response = http.send(&format!("POST /{path}/{text}")).await;
                assert!(
                    started.elapsed() < NO_WAIT,
                    "{path}: {:?}, a deadlock that only a timeout ended",
                    started.elapsed()
                );
                match response.status {
                    200 => kept.push(text),
                    _ => {
                        assert_eq!(path, reversed, "{}", response.body);
                        assert_eq!(response.status, 503, "{path}: {}", response.body);
                        assert_eq!(response.kind(), "out-of-order", "{}", response.body);
                        assert!(response.header("retry-after").is_some());
                    }
                }
            }
            kept
        });
    }
    clients.join_all().await.concat()
}

async fn opposite_orders_never_deadlock(backend: Backend) {
    let (stage, _) = stage(backend, PATIENT).await;
    for (one, other, databases) in [
        ("main-audit", "audit-main", &[In::Main, In::Audit][..]),
        ("main-read-audit", "read-audit-main", &[In::Main]),
        ("reads", "reads-reversed", &[]),
    ] {
        let mut kept = cross(&stage, one, other).await;
        kept.sort();
        for database in databases {
            assert_eq!(
                stage.databases.notes(*database).await,
                kept,
                "{one} in {database:?}"
            );
        }
        stage.databases.empty().await;
        stage.nothing_is_stuck().await;
    }
}

async fn a_free_database_is_taken_out_of_order(backend: Backend) {
    let (stage, _) = stage(backend, PATIENT).await;
    let response = stage.send("POST /audit-main/text").await;
    assert_eq!(
        response.summary(),
        (200, Some("committed")),
        "{}",
        response.body
    );
    assert_eq!(stage.notes().await, ["text", "text"]);
}

async fn a_second_connection_of_one_database_is_a_clear_error(backend: Backend) {
    let (stage, _) = stage(backend, PATIENT).await;
    for path in ["read-tx", "tx-read", "read-read", "read-begin"] {
        let started = Instant::now();
        let response = stage.send(&format!("POST /both/{path}")).await;
        assert_eq!(response.status, 500, "{path}: {}", response.body);
        assert_eq!(response.kind(), "second-connection", "{path}");
        assert!(started.elapsed() < NO_WAIT, "{path} waited");
        stage.nothing_is_stuck().await;
    }
    let response = stage.send("POST /both/one-by-one").await;
    assert_eq!(
        response.summary(),
        (200, Some("committed")),
        "{}",
        response.body
    );
}

async fn reads_go_on_while_a_transaction_is_held(backend: Backend) {
    let (stage, go_on) = stage(backend, PATIENT).await;
    let http = stage.http.clone();
    let held = rocket::tokio::spawn(async move { http.send("POST /hold").await });
    eventually("the transaction is held", async || {
        stage.outstanding().len() == 1
    })
    .await;
    for _ in 0..5 {
        assert_eq!(stage.send("GET /count").await.body, "0");
    }
    go_on.notify_one();
    assert_eq!(held.await.unwrap().summary(), (201, Some("committed")));
    assert_eq!(stage.send("GET /count").await.body, "1");
}

async fn a_request_that_waits_for_a_connection_gets_it_or_a_503(backend: Backend) {
    let (stage, go_on) = stage(backend, "\"1s\"").await;
    let http = stage.http.clone();
    let held = rocket::tokio::spawn(async move { http.send("POST /hold").await });
    eventually("the transaction is held", async || {
        stage.outstanding().len() == 1
    })
    .await;

    let response = stage.send("POST /write").await;
    assert_eq!(response.summary(), (503, Some("rolled-back")));
    assert_eq!(response.kind(), "busy");
    assert!(response.header("retry-after").is_some());

    let http = stage.http.clone();
    let waiting = rocket::tokio::spawn(async move { http.send("POST /write").await });
    go_on.notify_one();
    assert_eq!(held.await.unwrap().summary(), (201, Some("committed")));
    assert_eq!(waiting.await.unwrap().summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["held", "written"]);
    stage.nothing_is_stuck().await;
}

fn post_todo(length: usize, fault: &str) -> String {
    format!(
        "POST /todos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         X-Fault: {fault}\r\nContent-Length: {length}\r\n\r\n"
    )
}

async fn raw(service: &Service) -> TcpStream {
    let address = service.http.base.trim_start_matches("http://");
    TcpStream::connect(address).await.unwrap()
}

async fn outstanding(service: &Service) -> usize {
    let registry: Value = service.get("/registry").await.json();
    registry["outstanding"].as_array().unwrap().len()
}

async fn a_slow_body_holds_no_connection(backend: Backend) {
    let service = Service::start(backend).await;
    let mut slow = Vec::new();
    // More than any pool here has connections.
    for _ in 0..40 {
        let mut client = raw(&service).await;
        client
            .write_all(post_todo(1_000, "").as_bytes())
            .await
            .unwrap();
        client
            .write_all(br#"{"title": "never complete"#)
            .await
            .unwrap();
        slow.push(client);
    }
    for _ in 0..20 {
        let response = service.new_todo("quick", "").await;
        assert_eq!(response.summary(), (201, Some("committed")));
        assert_eq!(outstanding(&service).await, 0);
    }
    drop(slow);
    eventually("only todos with complete bodies are stored", async || {
        let todos: Vec<Value> = service.get("/todos").await.json();
        todos.len() == 20
    })
    .await;
    service.stop().await;
}

async fn a_client_that_goes_away_changes_nothing(backend: Backend) {
    let service = Service::start(backend).await;
    let titles = "SELECT title FROM todos ORDER BY id";
    for (title, fault, stored) in [
        ("kept", "delay=1500", 1),
        ("lost", "delay=1500,respond=500", 1),
        ("kept too", "delay=1500", 2),
    ] {
        let body = format!(r#"{{"title": "{title}"}}"#);
        let mut client = raw(&service).await;
        client
            .write_all((post_todo(body.len(), fault) + &body).as_bytes())
            .await
            .unwrap();
        eventually("the handler is running", async || {
            outstanding(&service).await > 0
        })
        .await;
        drop(client);
        eventually("the request is settled", async || {
            outstanding(&service).await == 0
        })
        .await;
        let kept = service.databases.texts(In::Main, titles).await;
        assert_eq!(kept.len(), stored, "{title}: {kept:?}");
        let entries = service
            .databases
            .texts(In::Audit, "SELECT action FROM audit")
            .await;
        assert_eq!(entries.len(), stored, "{title}");
    }
    service.stop().await;
}

on_each_backend!(
    opposite_orders_never_deadlock,
    a_free_database_is_taken_out_of_order,
    a_second_connection_of_one_database_is_a_clear_error,
    reads_go_on_while_a_transaction_is_held,
    a_request_that_waits_for_a_connection_gets_it_or_a_503,
    a_slow_body_holds_no_connection,
    a_client_that_goes_away_changes_nothing,
);
