//! The end of a service: by a signal under load, with open streams, with leaks, and by SIGKILL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rocket::http::Status;
use rocket::response::stream::TextStream;
use rocket::tokio::task::JoinSet;
use rocket::tokio::time::{interval, sleep, timeout};
use rocket::{Shutdown, State, get, post, routes};
use rocket_tx::{Error, Outstanding, Read, Settlement, Tx};

use crate::support::stage::{note, run};
use crate::support::{
    Backend, Databases, Http, HttpResponse, In, Main, Service, Stage, eventually,
};

/// The status of the response for each title. `None` if the connection ended without a response.
type Statuses = BTreeMap<String, Option<u16>>;

/// Posts todos one after another until the service stops responding.
async fn client(http: Http, name: String, fault: &'static str) -> Statuses {
    let mut statuses = Statuses::new();
    for turn in 0..10_000 {
        let title = format!("{name}-{turn}");
        let response = http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("X-Fault", fault)
            .body(format!(r#"{{"title": "{title}"}}"#))
            .send()
            .await;
        let status = response.ok().map(|response| response.status().as_u16());
        statuses.insert(title, status);
        if status.is_none() {
            break;
        }
    }
    statuses
}

async fn under_load(http: &Http, round: usize, fault: &'static str) -> JoinSet<Statuses> {
    let mut clients = JoinSet::new();
    for number in 0..24 {
        let name = format!("{round}-{number}");
        clients.spawn(client(http.clone(), name, fault));
    }
    // Some requests have got their response, others are still running.
    eventually("the clients have made progress", async || {
        let registry: rocket::serde::json::Value = http.send("GET /registry").await.json();
        registry["settled"]["committed"].as_u64().unwrap() > 20
    })
    .await;
    clients
}

async fn titles(databases: &Databases) -> Vec<String> {
    databases.texts(In::Main, "SELECT title FROM todos").await
}

async fn lines(databases: &Databases) -> usize {
    databases
        .texts(In::Audit, "SELECT action FROM audit")
        .await
        .len()
}

async fn sigterm_under_load_lets_every_request_end(backend: Backend) {
    let mut service = Service::start(backend).await;
    let clients = under_load(&service.http, 0, "delay=20").await;
    service.signal("TERM");
    let statuses: Statuses = clients.join_all().await.into_iter().flatten().collect();
    assert_eq!(service.ended().await.code(), Some(0), "{}", service.log());
    assert!(!service.log().contains("ERROR"), "{}", service.log());

    let stored = titles(&service.databases).await;
    for (title, status) in &statuses {
        match status {
            Some(status) => assert_eq!(*status, 201, "{title}"),
            // The service did not read this request any more.
            None => assert!(
                !stored.contains(title),
                "{title} is stored, but got no response"
            ),
        }
    }
    let with_response = statuses.values().flatten().count();
    assert_eq!(stored.len(), with_response);
    assert_eq!(lines(&service.databases).await, with_response);
}

async fn signals_may_come_twice(backend: Backend) {
    for signals in [["INT", "INT"], ["TERM", "TERM"], ["TERM", "INT"]] {
        let mut service = Service::start(backend).await;
        let http = service.http.clone();
        let slow = rocket::tokio::spawn(client(http.clone(), "slow".into(), "delay=500"));
        eventually("the request is outstanding", async || {
            !http
                .send("GET /registry")
                .await
                .body
                .contains(r#""outstanding":[]"#)
        })
        .await;
        for signal in signals {
            service.signal(signal);
            sleep(Duration::from_millis(50)).await;
        }
        let statuses = slow.await.unwrap();
        assert_eq!(statuses["slow-0"], Some(201), "{signals:?}");
        assert_eq!(
            service.ended().await.code(),
            Some(0),
            "{signals:?}: {}",
            service.log()
        );
        assert_eq!(titles(&service.databases).await, ["slow-0"]);
    }
}

async fn a_leak_does_not_block_the_exit(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let variables = [("ROCKET_SHUTDOWN", "{grace=1,mercy=1}")];
    let mut service = Service::on(databases, &variables).await;
    assert_eq!(service.new_todo("leaked", "leak=60000").await.status, 500);
    let started = Instant::now();
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0), "{}", service.log());
    assert!(
        started.elapsed() < Duration::from_secs(50),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(titles(&service.databases).await, [""; 0]);
    assert_eq!(lines(&service.databases).await, 0);
}

/// An acknowledged request is stored in both databases. Any other request is stored in both, in
/// neither, or in the first only, if the service was killed between the two COMMITs.
async fn sigkill_under_load_loses_no_acknowledged_request(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    for round in 0..4 {
        let mut service = Service::on(Arc::clone(&databases), &[]).await;
        let clients = under_load(&service.http, round, "").await;
        service.signal("KILL");
        let statuses: Statuses = clients.join_all().await.into_iter().flatten().collect();
        service.ended().await;

        let successor = Service::on(Arc::clone(&databases), &[]).await;
        let stored = titles(&databases).await;
        for (title, status) in &statuses {
            if let Some(status) = status {
                assert_eq!(*status, 201, "{title}");
                assert!(
                    stored.contains(title),
                    "{title} was acknowledged, but is not stored"
                );
            }
        }
        let without_response = statuses.values().filter(|status| status.is_none()).count();
        let missing = stored.len() - lines(&databases).await;
        assert!(
            missing <= without_response,
            "{missing} requests stored by half, of {without_response} without a response"
        );
        successor.stop().await;
        for (database, table) in [
            (In::Main, "DELETE FROM todos"),
            (In::Audit, "DELETE FROM audit"),
        ] {
            databases.execute(database, table).await;
        }
    }
}

/// A stream that ends on shutdown.
#[get("/ticks")]
fn ticks(mut shutdown: Shutdown) -> TextStream![&'static str] {
    TextStream! {
        let mut ticks = interval(Duration::from_millis(20));
        loop {
            rocket::tokio::select! {
                _ = ticks.tick() => yield "tick\n",
                () = &mut shutdown => break,
            }
        }
    }
}

/// A stream that ends on shutdown and reads through a connection.
#[get("/reading")]
fn reading(mut read: Read<Main>, mut shutdown: Shutdown) -> TextStream![&'static str] {
    TextStream! {
        loop {
            let response = run(&mut read, "SELECT 1").await;
            yield if response.is_ok() { "read\n" } else { "failed\n" };
            rocket::tokio::select! {
                () = sleep(Duration::from_millis(20)) => {}
                () = &mut shutdown => break,
            }
        }
    }
}

/// A stream that ignores shutdown.
#[get("/endless")]
fn endless() -> TextStream![&'static str] {
    TextStream! {
        let mut ticks = interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            yield "tick\n";
        }
    }
}

#[post("/slow")]
async fn slow(mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, "slow").await?;
    sleep(Duration::from_millis(400)).await;
    Ok(Status::Created)
}

#[post("/hook/<millis>")]
fn hook(millis: u64, outstanding: &Outstanding, ran: &State<Arc<AtomicBool>>) -> Result<(), Error> {
    let ran = Arc::clone(ran);
    outstanding.after_commit(async move {
        sleep(Duration::from_millis(millis)).await;
        ran.store(true, Ordering::SeqCst);
    })
}

/// Returns a stage that gives connections two seconds to end on shutdown.
async fn stage(backend: Backend) -> (Stage, Arc<AtomicBool>) {
    let ran = Arc::<AtomicBool>::default();
    let managed = Arc::clone(&ran);
    let settings = [("shutdown.grace", "1"), ("shutdown.mercy", "1")];
    let stage = Stage::with(backend, &settings, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![ticks, reading, endless, slow, hook])
            .attach(Settlement::new())
    })
    .await;
    (stage, ran)
}

/// Opens a stream, waits for its first part, and reads it to the end in a task. The task returns
/// whether the stream ended without an error.
async fn open(stage: &Stage, path: &str) -> rocket::tokio::task::JoinHandle<bool> {
    let mut response = stage
        .http
        .request(&format!("GET {path}"))
        .send()
        .await
        .unwrap();
    assert!(
        response.chunk().await.unwrap().is_some(),
        "{path} has begun"
    );
    rocket::tokio::spawn(async move {
        loop {
            match response.chunk().await {
                Ok(Some(part)) => assert!(!part.starts_with(b"failed")),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    })
}

async fn shutdown_with_open_streams_settles_requests_in_flight(backend: Backend) {
    for (path, ends_well) in [("/ticks", true), ("/reading", true), ("/endless", false)] {
        let (stage, _) = stage(backend).await;
        let stream = open(&stage, path).await;
        let http = stage.http.clone();
        let in_flight = rocket::tokio::spawn(async move { http.send("POST /slow").await });
        eventually("the request is outstanding", async || {
            !stage.outstanding().is_empty()
        })
        .await;

        let closed = timeout(Duration::from_secs(60), stage.close()).await;
        let databases = closed.unwrap_or_else(|_| panic!("{path} blocks the exit"));
        let response: HttpResponse = in_flight.await.unwrap();
        assert_eq!(response.summary(), (201, Some("committed")), "{path}");
        assert_eq!(databases.notes(In::Main).await, ["slow"], "{path}");
        assert_eq!(stream.await.unwrap(), ends_well, "{path}");
    }
}

async fn shutdown_waits_for_hooks_within_bounds(backend: Backend) {
    let (quick, ran) = stage(backend).await;
    assert_eq!(quick.send("POST /hook/400").await.status, 200);
    quick.close().await;
    assert!(ran.load(Ordering::SeqCst), "shutdown waits for a slow hook");

    let (endless, ran) = stage(backend).await;
    assert_eq!(endless.send("POST /hook/600000").await.status, 200);
    let closed = timeout(Duration::from_secs(60), endless.close()).await;
    assert!(
        closed.is_ok(),
        "a hook that never ends does not block shutdown"
    );
    assert!(!ran.load(Ordering::SeqCst));
}

on_each_backend!(
    sigterm_under_load_lets_every_request_end,
    signals_may_come_twice,
    a_leak_does_not_block_the_exit,
    sigkill_under_load_loses_no_acknowledged_request,
    shutdown_with_open_streams_settles_requests_in_flight,
    shutdown_waits_for_hooks_within_bounds,
);
