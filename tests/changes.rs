//! `/changes`: told after a commit, and only then.

use std::pin::Pin;
use std::time::Duration;

use rocket::futures::{Stream, StreamExt};
use rocket::serde::json::Value;
use rocket::tokio::time::timeout;

use crate::aggregates::{create, rename};
use crate::support::{Backend, Http, Service};

struct Told {
    stream: Pin<Box<dyn Stream<Item = reqwest::Result<Vec<u8>>> + Send>>,
    text: String,
}

impl Told {
    async fn by(http: &Http) -> Self {
        let answer = http.request("GET /changes").send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let stream = answer.bytes_stream();
        let mut told = Self {
            stream: Box::pin(stream.map(|part| part.map(|part| part.to_vec()))),
            text: String::new(),
        };
        // From here on it listens.
        assert!(told.more().await);
        told
    }

    /// Whether there was more.
    async fn more(&mut self) -> bool {
        let part = timeout(Duration::from_secs(10), self.stream.next()).await;
        let Some(part) = part.unwrap() else {
            return false;
        };
        self.text += std::str::from_utf8(&part.unwrap()).unwrap();
        true
    }

    /// The lists that were told of until there are so many.
    async fn lists(&mut self, count: usize) -> Vec<String> {
        // Heartbeats come for as long as anybody listens.
        for _ in 0..20 {
            let events = self.text.split("\n\n");
            let events = events.filter(|event| event.contains("event:changed"));
            let lists = events.filter_map(|event| event.split_once("data:"));
            let lists: Vec<String> = lists.map(|(_, list)| list.trim().to_owned()).collect();
            if lists.len() >= count {
                return lists;
            }
            assert!(self.more().await, "it ended: {}", self.text);
        }
        panic!("{count} changes were not told: {}", self.text);
    }
}

async fn what_was_committed_is_told_and_nothing_else(backend: Backend) {
    let mut service = Service::start(backend).await;
    let mut told = Told::by(&service.http).await;
    let mut other = Told::by(&service.http).await;
    service.new_todo("a", "respond=502").await;
    service.new_todo("a", "commit").await;
    service.get("/todos").await;
    service.get("/aggregates/todos").await;
    create(&service.http, "milk").await;
    rename(&service.http, "milk", "late", "expire-lease").await;
    let todo: Value = service.new_todo("a", "").await.json();
    let share = format!("POST /todos/{}/share", todo["id"]);
    assert_eq!(service.http.send(&share).await.status, 200);
    let expected = ["aggregates", "todos", "todos"];
    assert_eq!(told.lists(3).await, expected);
    assert_eq!(other.lists(3).await, expected);

    // It is there when it is told.
    service.new_todo("b", "").await;
    told.lists(4).await;
    assert!(service.get("/todos").await.body.contains(r#""title":"b""#));

    // It ends with the service.
    service.signal("TERM");
    for _ in 0..20 {
        if !told.more().await {
            assert_eq!(service.ended().await.code(), Some(0));
            return;
        }
    }
    panic!("it did not end");
}

on_each_backend!(what_was_committed_is_told_and_nothing_else);
