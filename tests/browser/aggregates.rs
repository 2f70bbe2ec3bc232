//! The page `/aggregates`.

use rocket::serde::json::Value;

use super::open;
use crate::aggregates::{create, rename};
use crate::support::{Backend, Service};

async fn two_commands_race_and_none_is_lost(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/aggregates").await;
    // A todo of another client appears. Then one more is created here.
    create(&service.http, "milk").await;
    browser.click("[name=create]").await;
    browser
        .until("document.querySelectorAll('[name=id] option').length === 2")
        .await;
    browser
        .until("document.querySelector('[name=id]').value !== 'milk'")
        .await;
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
    // The second command has waited for the first, so its event is the last.
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
    let texts = browser.texts(".runners td:nth-child(3)").await;
    assert!(
        texts[1].starts_with("412 Precondition Failed: "),
        "{texts:?}"
    );
    assert_eq!(browser.errors().await, [""; 0]);
    drop(browser);
    service.stop().await;
}

async fn new_events_of_a_stream_appear(backend: Backend) {
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
    let payloads = browser.texts(".stream td:nth-child(3)").await;
    assert!(payloads[1].contains("<i>oat</i>"), "{payloads:?}");
    rename(&service.http, "bread", "rye", "").await;
    rename(&service.http, "milk", "refused", "respond=500").await;
    rename(&service.http, "milk", "cheese", "").await;
    browser.shows(".version", &["version 3"]).await;
    let events: Vec<Value> = service.get("/aggregates/todos/milk/events").await.json();
    assert_eq!(events.len(), 3);
}

on_each_backend!(
    two_commands_race_and_none_is_lost,
    new_events_of_a_stream_appear
);
