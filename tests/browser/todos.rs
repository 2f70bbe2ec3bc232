//! The todo app follows the TodoMVC application specification, and shows what is stored.

use fantoccini::key::Key;
use rocket::serde::json::Value;

use super::{open, titles};
use crate::support::{Backend, Browser, Service, eventually};

async fn add(browser: &Browser, title: &str) {
    let keys = format!("{title}{}", char::from(Key::Enter));
    browser.type_in(".new-todo", &keys).await;
}

async fn start_editing(browser: &Browser, place: usize) {
    let script = format!(
        "document.querySelectorAll('.todo-list label')[{place}]
            .dispatchEvent(new MouseEvent('dblclick', {{ bubbles: true }}))"
    );
    browser.eval(&script).await;
    browser
        .until("document.activeElement.className === 'edit'")
        .await;
}

/// Replaces the text of the focused field, and presses the key `last`.
async fn edit_to(browser: &Browser, title: &str, last: Key) {
    browser.eval("document.activeElement.select()").await;
    let keys = format!("{title}{}", char::from(last));
    browser.keys(&keys).await;
}

async fn the_page_follows_the_todomvc_specification(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/").await;
    browser
        .until("document.activeElement.className === 'new-todo'")
        .await;
    browser.shows(".main, .footer", &[]).await;

    // Adding: titles are trimmed, and an empty title adds nothing.
    add(&browser, "  milk ").await;
    browser.shows(".todo-list label", &["milk"]).await;
    browser.shows(".todo-count", &["1 item left"]).await;
    add(&browser, "   ").await;
    browser
        .eval("document.querySelector('.new-todo').value = ''")
        .await;
    add(&browser, "bread").await;
    add(&browser, "<b>salt</b> & more").await;
    let all = ["milk", "bread", "<b>salt</b> & more"];
    browser.shows(".todo-list label", &all).await;
    browser.shows(".todo-count", &["3 items left"]).await;
    browser.shows(".clear-completed", &[]).await;
    eventually("the todos are stored", async || {
        titles(&service).await == all
    })
    .await;

    // Completing, and the filters.
    browser.click(".todo-list li:nth-child(2) .toggle").await;
    browser
        .shows(".todo-list .completed label", &["bread"])
        .await;
    browser.shows(".todo-count", &["2 items left"]).await;
    browser.click(".filters a[href='#/active']").await;
    browser
        .shows(".todo-list label", &["milk", "<b>salt</b> & more"])
        .await;
    browser.shows(".filters .selected", &["Active"]).await;
    browser.click(".filters a[href='#/completed']").await;
    browser.shows(".todo-list label", &["bread"]).await;
    browser.client.back().await.unwrap();
    browser.shows(".filters .selected", &["Active"]).await;
    // A reload changes nothing, not even the filter.
    browser.client.refresh().await.unwrap();
    browser
        .shows(".todo-list label", &["milk", "<b>salt</b> & more"])
        .await;
    browser.click(".filters a[href='#/']").await;
    browser.shows(".todo-list label", &all).await;

    // Editing: Enter and blur save the text, Escape discards it, and an empty title deletes the
    // todo.
    start_editing(&browser, 0).await;
    browser.shows(".editing .view", &[]).await;
    edit_to(&browser, " oat milk ", Key::Enter).await;
    browser
        .shows(
            ".todo-list label",
            &["oat milk", "bread", "<b>salt</b> & more"],
        )
        .await;
    start_editing(&browser, 0).await;
    edit_to(&browser, "cheese", Key::Escape).await;
    browser.shows(".editing", &[]).await;
    browser
        .shows(
            ".todo-list label",
            &["oat milk", "bread", "<b>salt</b> & more"],
        )
        .await;
    start_editing(&browser, 1).await;
    edit_to(&browser, "rye bread", Key::Tab).await;
    browser
        .shows(
            ".todo-list label",
            &["oat milk", "rye bread", "<b>salt</b> & more"],
        )
        .await;
    start_editing(&browser, 2).await;
    edit_to(&browser, "", Key::Delete).await;
    browser.press(&[Key::Enter]).await;
    browser
        .shows(".todo-list label", &["oat milk", "rye bread"])
        .await;
    eventually("the edits are stored", async || {
        titles(&service).await == ["oat milk", "rye bread"]
    })
    .await;

    // Complete all, then clear the completed todos.
    let toggle_all = "document.querySelector('.toggle-all')";
    browser.click(".toggle-all + label").await;
    browser.shows(".todo-count", &["0 items left"]).await;
    browser.until(&format!("{toggle_all}.checked")).await;
    browser.click(".todo-list li:first-child .toggle").await;
    browser.until(&format!("!{toggle_all}.checked")).await;
    browser.click(".clear-completed").await;
    browser.shows(".todo-list label", &["oat milk"]).await;
    let script = "document.querySelector('.destroy').click()";
    browser.eval(script).await;
    browser.shows(".main, .footer", &[]).await;
    eventually("no todo remains", async || {
        titles(&service).await.is_empty()
    })
    .await;

    assert_eq!(browser.errors().await, [""; 0]);
    let host = service.http.base.trim_start_matches("http://");
    assert_eq!(browser.hosts().await, [host]);
    drop(browser);
    service.stop().await;
}

async fn a_refused_change_is_undone_with_the_reason(backend: Backend) {
    let service = Service::start(backend).await;
    service.new_todo("kept", "").await;
    let browser = open(&service, "/?with-fault=respond=503").await;
    browser.shows(".todo-list label", &["kept"]).await;
    browser.shows(".faulty code", &["respond=503"]).await;

    add(&browser, "refused").await;
    browser
        .until("document.querySelector('.refusal').checkVisibility()")
        .await;
    let reason = browser.texts(".refusal p").await.join("");
    assert!(reason.starts_with("503 Service Unavailable: "), "{reason}");
    assert!(reason.ends_with("The change was undone."), "{reason}");
    browser.shows(".todo-list label", &["kept"]).await;
    browser.click(".refusal button").await;
    browser.shows(".refusal", &[]).await;

    browser.click(".toggle").await;
    browser
        .until("document.querySelector('.refusal').checkVisibility()")
        .await;
    browser.shows(".todo-list .completed label", &[]).await;
    start_editing(&browser, 0).await;
    edit_to(&browser, "renamed", Key::Enter).await;
    browser.shows(".todo-list label", &["kept"]).await;
    assert_eq!(titles(&service).await, ["kept"]);
    // For invalid input, the page shows the message of the service.
    browser.client.goto(&service.http.base).await.unwrap();
    let script = "document.querySelector('.new-todo').maxLength = 600";
    browser.eval(script).await;
    add(&browser, &"x".repeat(501)).await;
    browser
        .until("document.querySelector('.refusal p').textContent.includes('`title` must have at most 500')")
        .await;
    browser.shows(".todo-list label", &["kept"]).await;
}

async fn two_tabs_see_each_others_changes(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/").await;
    let first = browser.client.window().await.unwrap();
    let second = browser.client.new_window(false).await.unwrap().handle;
    browser
        .client
        .switch_to_window(second.clone())
        .await
        .unwrap();
    browser.client.goto(&service.http.base).await.unwrap();
    add(&browser, "from the second").await;
    browser
        .shows(".todo-list label", &["from the second"])
        .await;

    browser.client.switch_to_window(first).await.unwrap();
    browser
        .shows(".todo-list label", &["from the second"])
        .await;
    // A user who is typing keeps the typed text and the focus.
    start_editing(&browser, 0).await;
    edit_to(&browser, "half a wo", Key::Shift).await;
    service.new_todo("from elsewhere", "").await;
    let both = ["from the second", "from elsewhere"];
    browser
        .until("document.querySelectorAll('.todo-list li').length === 2")
        .await;
    let typed = browser.eval("document.activeElement.value").await;
    assert_eq!(typed, "half a wo");
    browser.press(&[Key::Escape]).await;
    browser.shows(".todo-list label", &both).await;
    browser.click(".todo-list li:first-child .toggle").await;

    browser.client.switch_to_window(second).await.unwrap();
    browser
        .shows(".todo-list .completed label", &both[..1])
        .await;
    browser.shows(".todo-list label", &both).await;
}

async fn deleted_rows_disappear(backend: Backend) {
    let service = Service::start(backend).await;
    let four = ["a", "b", "c", "d"];
    for title in four {
        service.new_todo(title, "").await;
    }
    let browser = open(&service, "/").await;
    browser.shows(".todo-list label", &four).await;
    browser.click(".filters a[href='#/completed']").await;
    browser.shows(".todo-list label", &[]).await;
    browser.click(".filters a[href='#/']").await;
    browser.shows(".todo-list label", &four).await;
    service.http.send("DELETE /todos").await;
    browser.shows(".main, .footer", &[]).await;
    // Several new todos at once: each is shown once, before the response and after it.
    let slow = format!("{}/?with-fault=delay=200", service.http.base);
    browser.client.goto(&slow).await.unwrap();
    for title in &four[..3] {
        add(&browser, title).await;
    }
    browser.shows(".todo-list label", &four[..3]).await;
    browser
        .until("document.querySelector('.todoapp').ariaBusy === 'false'")
        .await;
    browser.shows(".todo-list label", &four[..3]).await;
    assert_eq!(titles(&service).await, &four[..3]);
    assert_eq!(browser.errors().await, [""; 0]);
}

/// Other clients change and delete todos meanwhile.
async fn half_typed_text_is_not_saved(backend: Backend) {
    let service = Service::start(backend).await;
    let mut urls = Vec::new();
    for title in ["a", "b", "c", "d"] {
        let todo: Value = service.new_todo(title, "").await.json();
        urls.push(format!("/todos/{}", todo["id"]));
    }
    let browser = open(&service, "/#/active").await;
    browser
        .shows(".todo-list label", &["a", "b", "c", "d"])
        .await;
    start_editing(&browser, 3).await;
    edit_to(&browser, "half", Key::Shift).await;
    for url in &urls[..2] {
        service.http.send(&format!("DELETE {url}")).await;
    }
    browser
        .until("document.querySelectorAll('.todo-list li').length === 2")
        .await;
    let done = format!("PATCH {}", urls[3]);
    service.http.json(&done, r#"{"completed":true}"#).await;
    browser.shows(".todo-count", &["1 item left"]).await;
    assert_eq!(browser.eval("document.activeElement.value").await, "half");
    assert_eq!(titles(&service).await, ["c", "d"]);
    service.http.send(&format!("DELETE {}", urls[3])).await;
    browser
        .until("document.querySelector('.refusal p').textContent.endsWith('You had typed “half”.')")
        .await;
    browser.shows(".todo-list label", &["c"]).await;
    assert_eq!(titles(&service).await, ["c"]);
    assert_eq!(browser.errors().await, [""; 0]);
}

async fn the_app_works_by_keyboard(backend: Backend) {
    let service = Service::start(backend).await;
    service.new_todo("milk", "").await;
    let browser = open(&service, "/").await;
    browser.shows(".todo-list label", &["milk"]).await;
    let focused = |css: &str| format!("document.activeElement.matches({css:?})");
    browser.until(&focused(".new-todo")).await;
    for css in [".toggle-all", ".toggle", ".view label", ".destroy"] {
        browser.press(&[Key::Tab]).await;
        browser.until(&focused(css)).await;
        match css {
            ".toggle" => {
                browser.press(&[Key::Space]).await;
                browser
                    .shows(".todo-list .completed label", &["milk"])
                    .await;
            }
            ".view label" => {
                browser.press(&[Key::Enter]).await;
                browser.until(&focused(".edit")).await;
                browser.press(&[Key::Escape]).await;
                browser.until("!document.querySelector('.edit')").await;
                browser
                    .eval("document.querySelector('.view label').focus()")
                    .await;
            }
            ".destroy" => {
                browser.press(&[Key::Enter]).await;
                browser.shows(".main", &[]).await;
            }
            _ => {}
        }
    }
    eventually("no todo remains", async || {
        titles(&service).await.is_empty()
    })
    .await;
}

on_each_backend!(
    the_page_follows_the_todomvc_specification,
    a_refused_change_is_undone_with_the_reason,
    two_tabs_see_each_others_changes,
    deleted_rows_disappear,
    half_typed_text_is_not_saved,
    the_app_works_by_keyboard,
);
