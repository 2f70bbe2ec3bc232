//! Pages that outlive their service, and services that end under a page.

use fantoccini::key::Key;

use super::{again, heard, open, titles};
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
    // What is done meanwhile is not done, and the page says so.
    browser.click(".toggle").await;
    browser
        .until("document.querySelector('.refusal p').textContent.startsWith('The connection was lost')")
        .await;
    browser.shows(".todo-list .completed label", &[]).await;
    browser.shows(".todo-list label", &["kept"]).await;

    let service = again(service).await;
    browser
        .until("!document.querySelector('.away').checkVisibility()")
        .await;
    let keys = format!("after{}", char::from(Key::Enter));
    browser.type_in(".new-todo", &keys).await;
    browser.shows(".todo-list label", &["kept", "after"]).await;
    eventually("it is stored", async || {
        titles(&service).await == ["kept", "after"]
    })
    .await;
    // What others do is told again.
    service.new_todo("by another", "").await;
    browser
        .shows(".todo-list label", &["kept", "after", "by another"])
        .await;
}

async fn a_service_ends_in_order_under_its_pages(backend: Backend) {
    let mut service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    heard(&service).await;
    // The page's own request, under way when the end comes.
    browser.choose("[name=action]", "Create a todo").await;
    browser.choose("[name=fault]", "it is slow").await;
    browser.click(".go").await;
    eventually("it is under way", async || {
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
    let service = again(service).await;
    assert_eq!(titles(&service).await.len(), 1);
}

on_each_backend!(
    a_page_survives_a_restart,
    a_service_ends_in_order_under_its_pages,
);
