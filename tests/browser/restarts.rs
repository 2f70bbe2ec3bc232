//! Open pages when their service ends and restarts.

use fantoccini::key::Key;

use super::{open, restart, titles, wait_for_listener};
use crate::support::{Backend, Service, eventually};

async fn a_page_survives_a_restart(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.new_todo("kept", "").await;
    let browser = open(&service, "/").await;
    browser.shows(".todo-list label", &["kept"]).await;

    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0));
    browser
        .until("document.querySelector('.away').checkVisibility()")
        .await;
    // A change fails meanwhile, and the page says so.
    browser.click(".toggle").await;
    browser
        .until("document.querySelector('.refusal p').textContent.startsWith('The connection was lost')")
        .await;
    browser.shows(".todo-list .completed label", &[]).await;
    browser.shows(".todo-list label", &["kept"]).await;

    let service = restart(service).await;
    browser
        .until("!document.querySelector('.away').checkVisibility()")
        .await;
    let keys = format!("after{}", char::from(Key::Enter));
    browser.type_in(".new-todo", &keys).await;
    browser.shows(".todo-list label", &["kept", "after"]).await;
    eventually("the todo is stored", async || {
        titles(&service).await == ["kept", "after"]
    })
    .await;
    // Changes of other clients appear again.
    service.new_todo("by another", "").await;
    browser
        .shows(".todo-list label", &["kept", "after", "by another"])
        .await;
}

async fn a_service_with_open_pages_shuts_down_cleanly(backend: Backend) {
    let mut service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    wait_for_listener(&service).await;
    // A request of the page is running when the service ends.
    browser.choose("[name=action]", "Create a todo").await;
    browser.choose("[name=fault]", "it is slow").await;
    browser.click(".go").await;
    eventually("the request is running", async || {
        service
            .get("/registry")
            .await
            .body
            .contains(r#""route":"todos::create""#)
    })
    .await;
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0), "{}", service.log());
    browser.shows(".request .badge", &["committed"]).await;
    browser.shows(".request .status", &["→ 201"]).await;
    let service = restart(service).await;
    assert_eq!(titles(&service).await.len(), 1);
}

on_each_backend!(
    a_page_survives_a_restart,
    a_service_with_open_pages_shuts_down_cleanly,
);
