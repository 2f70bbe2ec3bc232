//! The view of the aggregates.

use rocket::serde::json::Value;

use super::open;
use crate::aggregates::{create, rename};
use crate::support::{Backend, Service};

async fn two_commands_race_and_none_is_lost(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/aggregates").await;
    browser
        .shows(".stream .empty", &["No events yet. Create a todo."])
        .await;
    browser.click("[name=create]").await;
    browser.shows(".version", &["version 1"]).await;
    browser.shows(".stream td:nth-child(2)", &["created"]).await;

    browser.click(".race .go").await;
    browser
        .until("document.querySelector('.lease p').textContent.startsWith('Held by ')")
        .await;
    browser.shows(".version", &["version 3"]).await;
    browser
        .shows(".runners .badge", &["committed", "committed"])
        .await;
    browser
        .shows(
            ".stream td:nth-child(2)",
            &["created", "renamed", "renamed"],
        )
        .await;
    browser.shows(".lease p", &["Not held."]).await;
    // The second has waited for the first, and has the last word.
    let tasks = browser.texts(".stream td:nth-child(3)").await;
    assert!(
        tasks[1].contains("first at") && tasks[2].contains("second at"),
        "{tasks:?}"
    );

    browser
        .choose("[name=how]", "both require the same version")
        .await;
    browser
        .until("!document.querySelector('.race .go').disabled")
        .await;
    browser.click(".race .go").await;
    browser
        .shows(".runners .badge", &["committed", "rolled-back"])
        .await;
    browser.shows(".version", &["version 4"]).await;
    let said = browser.texts(".runners td:nth-child(3)").await;
    assert!(said[1].starts_with("412 Precondition Failed: "), "{said:?}");
    assert_eq!(browser.errors().await, [""; 0]);
    drop(browser);
    service.stop().await;
}

async fn a_stream_is_seen_to_grow(backend: Backend) {
    let service = Service::start(backend).await;
    create(&service.http, "bread").await;
    create(&service.http, "milk").await;
    let browser = open(&service, "/aggregates").await;
    browser
        .until("document.querySelectorAll('[name=id] option').length === 2")
        .await;
    browser
        .eval("document.querySelector('[name=id]').value = 'milk'")
        .await;
    browser
        .eval("document.querySelector('[name=id]').dispatchEvent(new Event('change'))")
        .await;
    browser.shows(".version", &["version 1"]).await;
    rename(&service.http, "milk", "<i>oat</i> milk", "").await;
    browser.shows(".version", &["version 2"]).await;
    let with = browser.texts(".stream td:nth-child(3)").await;
    assert!(with[1].contains("<i>oat</i>"), "{with:?}");
    rename(&service.http, "bread", "rye", "").await;
    rename(&service.http, "milk", "refused", "respond=500").await;
    rename(&service.http, "milk", "cheese", "").await;
    browser.shows(".version", &["version 3"]).await;
    let events: Vec<Value> = service.get("/aggregates/todos/milk/events").await.json();
    assert_eq!(events.len(), 3);
}

on_each_backend!(two_commands_race_and_none_is_lost, a_stream_is_seen_to_grow);
