//! `/registry/events`: a live feed of the events of requests.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rocket::futures::FutureExt;
use rocket::serde::json::{Value, serde_json};
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::TcpStream;
use rocket::tokio::task::unconstrained;
use rocket_tx::Settlement;
use rocket_tx::tx::FeedItem;

use crate::aggregates::{create, rename};
use crate::support::{Backend, Events, Http, HttpResponse, Service, Stage, eventually};

/// A client that collects the events of the feed, from the moment of its creation.
pub struct Listener {
    stream: Events,
    /// The events of each request, in the order in which they arrived.
    pub events: HashMap<String, Vec<Value>>,
}

impl Listener {
    pub async fn on(http: &Http) -> Self {
        Self {
            stream: Events::of(http, "/registry/events").await,
            events: HashMap::new(),
        }
    }

    pub async fn more(&mut self) {
        let events = self.stream.more().await.expect("the feed is open");
        for (_, data) in events.into_iter().filter(|(name, _)| name == "request") {
            let event: Value = serde_json::from_str(&data).unwrap();
            let request = event["request"].as_str().unwrap().to_owned();
            self.events.entry(request).or_default().push(event);
        }
    }

    /// Waits for an event of any request for which `is_last` is `true`.
    pub async fn until(&mut self, is_last: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        while !self.events.values().flatten().any(&is_last) {
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(60), "{:?}", self.events);
            self.more().await;
        }
    }

    /// Returns the events of one request, once an event has arrived for which `is_last` is `true`.
    pub async fn of(
        &mut self,
        response: &HttpResponse,
        is_last: impl Fn(&Value) -> bool,
    ) -> Vec<Value> {
        let request = response.header("x-request-id").unwrap();
        let mut searched = 0;
        // Heartbeats never end, so a wait must be limited by time.
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            let events = self.events.get(request).map_or(&[][..], Vec::as_slice);
            // Each event is checked only once.
            if events[searched..].iter().any(&is_last) {
                return events.to_vec();
            }
            searched = events.len();
            self.more().await;
        }
        panic!("the last event of {request} did not arrive");
    }
}

/// Describes each event in a few words.
fn summary(events: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .map(|event| match event["what"].as_str().unwrap() {
            what @ ("began" | "checked-out" | "checked-in") => {
                format!("{what} {}", text(&event["resource"]))
            }
            "verdict" => format!("verdict {} {}", event["commit"], text(&event["reason"])),
            "step" => {
                let failed = if event["failed"].is_null() {
                    ""
                } else {
                    " failed"
                };
                let action = text(&event["action"]);
                format!("{action} {}{failed}", text(&event["resource"]))
            }
            "settled" => format!("settled {} {}", text(&event["outcome"]), event["status"]),
            "note" if event["about"] == "rows" => format!("rows {}", text(&event["says"]["at"])),
            "note" => text(&event["about"]),
            what => what.to_owned(),
        })
        .collect()
}

fn is_recounted(event: &Value) -> bool {
    event["says"]["at"] == "after"
}

async fn a_timeline_shows_the_reason_of_an_outcome(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.http = service.http.in_run("timeline");
    let mut listener = Listener::on(&service.http).await;
    let response = service.new_todo("kept", "").await;
    let events = listener.of(&response, is_recounted).await;
    let commits: &[&str] = match backend {
        Backend::Sqlite => &["commit main", "commit audit"],
        Backend::Postgres => &[
            "prepare-transaction audit",
            "decide main",
            "commit-prepared audit",
        ],
    };
    let commits = commits.iter().copied();
    let expected = [
        "rows before",
        "began main",
        "checked-out main",
        "statement",
        "began audit",
        "checked-out audit",
        "statement",
        "checked-in audit",
        "checked-in main",
        "checked-out main",
        "checked-in main",
        "checked-out audit",
        "checked-in audit",
        "rows inside",
        "verdict true status 201",
        "prepare main",
        "prepare audit",
    ]
    .into_iter()
    .chain(commits)
    .chain(["settled committed 201", "rows after"]);
    assert_eq!(summary(&events), expected.collect::<Vec<_>>());
    assert_eq!(events[1]["guard"], "Begin<Main>");
    assert_eq!(events[1]["route"], "todos::create");

    let response = service.new_todo("refused", "commit").await;
    assert_eq!(response.status, 409);
    let events = listener.of(&response, is_recounted).await;
    let summary = summary(&events);
    for expected in [
        "prepare main failed",
        "rollback audit",
        "settled rolled-back 409",
    ] {
        assert!(summary.contains(&expected.into()), "{summary:?}");
    }
    // The rows appear inside the transaction, and are gone after the rollback.
    let rows: Vec<(&str, i64, i64)> = events
        .iter()
        .filter(|event| event["about"] == "rows")
        .map(|event| {
            let says = &event["says"];
            let count = |name: &str| says[name].as_i64().unwrap();
            (says["at"].as_str().unwrap(), count("todos"), count("audit"))
        })
        .collect();
    assert_eq!(rows, [("before", 1, 1), ("inside", 2, 2), ("after", 1, 1)]);
    let times: Vec<u64> = events
        .iter()
        .map(|event| event["at_us"].as_u64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    service.stop().await;
}

/// Counting takes three queries per request.
async fn rows_are_counted_only_for_a_request_that_names_its_run(backend: Backend) {
    let mut service = Service::start(backend).await;
    let mut listener = Listener::on(&service.http).await;
    let unnamed = service.new_todo("unnamed", "").await;
    service.http = service.http.in_run("named");
    let named = service.new_todo("named", "").await;
    let events = summary(&listener.of(&named, is_recounted).await);
    assert!(events.contains(&"rows inside".into()), "{events:?}");
    let events = listener
        .of(&unnamed, |event| event["what"] == "settled")
        .await;
    let events = summary(&events);
    assert!(
        !events.iter().any(|event| event.starts_with("rows")),
        "{events:?}"
    );
    service.stop().await;
}

async fn events_include_aggregates(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.http = service.http.in_run("aggregates");
    create(&service.http, "milk").await;
    let mut listener = Listener::on(&service.http).await;
    // The writes after the verdict are counted too: the event, the list, the lease.
    let response = rename(&service.http, "milk", "in time", "").await;
    let events = listener.of(&response, is_recounted).await;
    let leases: Vec<&Value> = events.iter().filter(|it| it["about"] == "lease").collect();
    let states: Vec<&Value> = leases.iter().map(|it| &it["says"]["state"]).collect();
    assert_eq!(states, ["waiting", "acquired"]);
    assert_eq!(leases[0]["says"]["database"], "main");
    let events = summary(&events);
    // The statements that take the lease are left out.
    let acquired = events.iter().rposition(|it| it == "lease").unwrap();
    assert!(
        !events[..acquired].contains(&"statement".into()),
        "{events:?}"
    );
    let verdict = events.iter().position(|it| it.starts_with("verdict"));
    let late = events[verdict.unwrap()..].iter();
    let statements = match backend {
        // The event and the lease are one.
        Backend::Sqlite => 2,
        Backend::Postgres => 3,
    };
    assert_eq!(
        late.filter(|it| *it == "statement").count(),
        statements,
        "{events:?}"
    );
    let response = rename(&service.http, "milk", "late", "expire-lease").await;
    assert_eq!(response.status, 409);
    let events = listener.of(&response, is_recounted).await;
    let summary = summary(&events);
    for expected in [
        "began aggregates in main",
        "verdict true status 200",
        "prepare aggregates in main failed",
        "settled rolled-back 409",
    ] {
        assert!(
            summary.contains(&expected.into()),
            "{expected}: {summary:?}"
        );
    }
}

async fn events_contain_neither_sql_nor_values(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.http = service.http.in_run("faults");
    let mut listener = Listener::on(&service.http).await;
    for fault in ["swallow", "commit", "panic", "respond=502"] {
        let response = service.new_todo("a secret title", fault).await;
        listener.of(&response, is_recounted).await;
    }
    for event in listener.events.values().flatten() {
        let event = event.to_string();
        for word in ["secret", "INSERT", "SELECT", "sqlite", "postgres"] {
            assert!(!event.contains(word), "{word}: {event}");
        }
    }
}

async fn a_thousand_listeners_leave_nothing_behind(backend: Backend) {
    let service = Service::start(backend).await;
    let address = service.http.base.trim_start_matches("http://").to_owned();
    // In groups of 200, so that no process reaches its limit of open files.
    for _ in 0..5 {
        let mut open = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let request = format!("GET /registry/events HTTP/1.1\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            open.push(stream);
        }
        eventually("all of them listen", async || {
            service.listeners().await == 200
        })
        .await;
        drop(open);
        eventually("no listener remains", async || {
            service.listeners().await == 0
        })
        .await;
    }
    assert_eq!(
        service.new_todo("a", "").await.summary(),
        (201, Some("committed"))
    );
    service.stop().await;
}

/// One listener reads nothing. All requests complete, and another listener receives their events.
async fn a_stalled_listener_does_not_delay_requests(backend: Backend) {
    let service = Service::start(backend).await;
    let mut listener = Listener::on(&service.http).await;
    let address = service.http.base.trim_start_matches("http://").to_owned();
    let mut stalled = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /registry/events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stalled.write_all(request.as_bytes()).await.unwrap();
    eventually("the stalled client listens", async || {
        service.listeners().await == 2
    })
    .await;
    for _ in 0..300 {
        let response = service.new_todo("a", "").await;
        assert_eq!(response.status, 201);
        let events = listener
            .of(&response, |event| event["what"] == "settled")
            .await;
        assert!(events.len() > 10);
    }
    drop(listener);
    // The stalled client can read again.
    let mut start = [0; 4096];
    assert!(stalled.read(&mut start).await.unwrap() > 0);
    service.stop().await;
}

/// The number of queued events per listener is bounded. The listener learns how many events it has
/// missed.
async fn the_backlog_of_a_stalled_listener_is_bounded(backend: Backend) {
    let stage = Stage::new(backend, |rocket| rocket.attach(Settlement::new())).await;
    let mut stalled = stage.live.listen();
    let mut sent = 0;
    while sent < 2_000 {
        let response = stage.send("DELETE /pairs").await;
        assert_eq!(response.summary(), (200, Some("committed")));
        // Five events for each of two databases: begun, checked out, checked in, prepared,
        // committed.
        sent += 10;
    }
    let Some(FeedItem::Lagged(missed)) = stalled.next().await else {
        panic!("the listener has missed no events");
    };
    let mut queued = 0;
    // `unconstrained`, because tokio's budget would make a task yield after a number of events.
    while let Some(Some(item)) = unconstrained(stalled.next()).now_or_never() {
        assert!(matches!(item, FeedItem::Event(_)), "{item:?}");
        queued += 1;
    }
    assert!(queued <= 1_024, "{queued} events were queued");
    assert!(missed + queued >= sent, "{missed} and {queued} of {sent}");
}

on_each_backend!(
    a_timeline_shows_the_reason_of_an_outcome,
    events_include_aggregates,
    rows_are_counted_only_for_a_request_that_names_its_run,
    events_contain_neither_sql_nor_values,
    a_thousand_listeners_leave_nothing_behind,
    a_stalled_listener_does_not_delay_requests,
    the_backlog_of_a_stalled_listener_is_bounded,
);
