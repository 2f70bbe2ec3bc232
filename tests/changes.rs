//! `/changes` announces changes after their commit, and only then.

use rocket::serde::json::Value;

use crate::aggregates::{create, rename};
use crate::support::{Backend, Events, Service};

/// Waits for at least `count` announcements and returns the names of the changed lists.
async fn lists(events: &mut Events, count: usize) -> Vec<String> {
    let mut lists = Vec::new();
    for _ in 0..20 {
        for (name, list) in events.more().await.expect("the stream is open") {
            assert_eq!(name, "changed");
            lists.push(list);
        }
        if lists.len() >= count {
            return lists;
        }
    }
    panic!("expected {count} announcements, received {lists:?}");
}

async fn committed_changes_and_no_others_are_announced(backend: Backend) {
    let mut service = Service::start(backend).await;
    let mut events = Events::of(&service.http, "/changes").await;
    let mut other = Events::of(&service.http, "/changes").await;
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
    assert_eq!(lists(&mut events, 3).await, expected);
    assert_eq!(lists(&mut other, 3).await, expected);

    // An announced change can be read already.
    service.new_todo("b", "").await;
    assert_eq!(lists(&mut events, 1).await, ["todos"]);
    assert!(service.get("/todos").await.body.contains(r#""title":"b""#));

    // The stream ends with the service.
    service.signal("TERM");
    for _ in 0..20 {
        if events.more().await.is_none() {
            assert_eq!(service.ended().await.code(), Some(0));
            return;
        }
    }
    panic!("the stream did not end");
}

on_each_backend!(committed_changes_and_no_others_are_announced);
