//! The page `/console`.

use std::sync::Arc;

use fantoccini::key::Key;
use rocket::serde::json::{Value, json};

use super::{open, wait_for_listener};
use crate::aggregates::create;
use crate::support::{Backend, Browser, Databases, Service, eventually};

/// Selects an action and a fault by their labels, runs the action, and waits for the response.
pub(super) async fn run(browser: &Browser, action: &str, fault: &str) {
    browser.choose("[name=action]", action).await;
    browser.choose("[name=fault]", fault).await;
    browser.click(".go").await;
    browser
        .until("!document.querySelector('.go').disabled")
        .await;
}

/// Returns the text of the parts of the newest card.
pub(super) async fn newest(browser: &Browser, part: &str) -> String {
    let texts = browser.texts(&format!(".request:first-child {part}")).await;
    texts.join("\n")
}

pub(super) const CREATE: &str = "Create a todo";
pub(super) const SHARE: &str = "Share the newest todo";
pub(super) const RENAME: &str = "Rename the last aggregate by id";

async fn held_transactions_and_leases_are_shown(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    run(&browser, "Create an aggregate", "nothing").await;
    run(&browser, CREATE, "it leaks its transaction").await;
    browser
        .until(
            "document.querySelector('.outstanding .condemned')?.textContent.includes('condemned')",
        )
        .await;
    browser
        .until(
            "document.querySelector('.outstanding').textContent.includes('no transaction is open')",
        )
        .await;

    // While the request runs, its card already shows its name, and `open` instead of an outcome.
    browser.choose("[name=fault]", "it is slow").await;
    browser.click(".go").await;
    browser
        .shows(".request:first-child h2", &["POST /todos"])
        .await;
    browser
        .shows(".request:first-child .badge", &["open"])
        .await;
    browser
        .shows(".request:first-child .badge", &["committed"])
        .await;
    browser
        .until("!document.querySelector('.go').disabled")
        .await;

    browser.choose("[name=action]", RENAME).await;
    browser
        .choose("[name=fault]", "it is held for a long time")
        .await;
    browser.click(".go").await;
    browser
        .until("document.querySelector('.leases td:nth-child(2)')?.textContent.startsWith('todo:')")
        .await;
    browser
        .until("document.querySelector('.leases').textContent.includes('None')")
        .await;
}

/// A browser opens six connections to one host, and a stream takes one.
async fn many_tabs_are_open_at_once(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    for _ in 0..7 {
        let tab = browser.client.new_window(true).await.unwrap().handle;
        browser.client.switch_to_window(tab).await.unwrap();
        let console = format!("{}/console", service.http.base);
        browser.client.goto(&console).await.unwrap();
    }
    run(&browser, CREATE, "nothing").await;
    browser.shows(".request .badge", &["committed"]).await;
    // Hidden tabs do not listen.
    wait_for_listener(&service).await;
}

/// Actions that need a todo or an aggregate show a hint while there is none.
async fn an_action_without_a_target_shows_a_hint(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    for action in [SHARE, RENAME] {
        run(&browser, action, "nothing").await;
        let result = browser.texts(".result").await;
        assert_eq!(
            result,
            ["There is nothing to run this action on yet. Create one first."]
        );
        browser.shows(".request", &[]).await;
    }
    // An invalid amount is not sent.
    browser
        .choose("[name=fault]", "the response is a failure")
        .await;
    browser
        .eval("document.querySelector('[name=amount]').value = 'x'")
        .await;
    browser.click(".go").await;
    browser
        .until("document.querySelector('[name=amount]').matches(':invalid')")
        .await;
    browser.shows(".request", &[]).await;
}

/// The console announces a fault that has no effect on the action, and a service without faults.
async fn a_fault_without_effect_is_announced(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let service = Service::on(Arc::clone(&databases), &[]).await;
    let browser = open(&service, "/console").await;
    browser.choose("[name=fault]", "it refuses (share)").await;
    let idle = "This fault has no effect on this action. Choose “Share the newest todo”.";
    browser.shows(".explained", &[idle]).await;
    browser.choose("[name=action]", SHARE).await;
    let explanation = browser.texts(".explained").await.join("");
    assert!(
        explanation.starts_with("Sharing a todo calls another service"),
        "{explanation}"
    );
    browser.shows(".off", &[]).await;
    drop(browser);
    drop(service);

    let service = Service::on(databases, &[("ROCKET_FAULTS", "false")]).await;
    let browser = open(&service, "/console").await;
    browser
        .until("document.querySelector('[name=fault]').disabled")
        .await;
    browser
        .until("document.querySelector('.off').checkVisibility()")
        .await;
    browser.click(".go").await;
    browser.shows(".request .badge", &["committed"]).await;
}

/// While two requests run, the row counts do not show what either of them has written.
async fn row_counts_of_concurrent_requests_are_not_attributed(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.http = service.http.in_run("of another console");
    let browser = open(&service, "/console").await;
    wait_for_listener(&service).await;
    let slow = service.new_todo("slow", "delay=3000");
    let quick = async {
        eventually("the first request is running", async || {
            let registry: Value = service.get("/registry").await.json();
            registry["outstanding"] != json!([])
        })
        .await;
        create(&service.http, "quick").await;
    };
    rocket::futures::future::join(slow, quick).await;
    browser
        .shows(".request .badge", &["committed", "committed"])
        .await;
    browser.shows(".request .kept, .request .gone", &[]).await;
    let caveats = browser.texts(".request .empty").await;
    let crowded = caveats
        .iter()
        .filter(|text| text.starts_with("Other requests"));
    assert_eq!(crowded.count(), 2, "{caveats:?}");
    // The counts of a later request are its own again.
    service.new_todo("alone", "").await;
    browser
        .shows(".request:first-child .kept", &["2", "3"])
        .await;
}

/// Requests of other clients are shown too, but only if they had something outstanding.
async fn requests_of_other_clients_are_shown(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    wait_for_listener(&service).await;
    service.http.json("POST /todos", "{}").await;
    service.new_todo("by another", "respond=418").await;
    browser.shows(".request .badge", &["rolled-back"]).await;
    browser
        .shows(".request h2", &["todos::create (from another client)"])
        .await;
    let timeline = newest(&browser, ".timeline").await;
    for expected in [
        "main joined, by Begin<Main>",
        "audit: checked in",
        "status 418",
        "main: ROLLBACK",
    ] {
        assert!(timeline.contains(expected), "{expected}: {timeline}");
    }
    // The rows are counted only for requests of consoles.
    browser.shows(".request .rows", &[]).await;
    // The todo app in the frame shows the change too.
    browser.client.enter_frame(0).await.unwrap();
    service.new_todo("committed", "").await;
    browser.shows(".todo-list label", &["committed"]).await;
}

async fn the_console_works_by_keyboard(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    browser
        .until("document.querySelector('[name=fault]').value === '1'")
        .await;
    // The links to the four pages come first, then the form.
    browser
        .eval("document.querySelector('.pages a').focus()")
        .await;
    browser
        .press(&[Key::Tab, Key::Tab, Key::Tab, Key::Tab])
        .await;
    browser
        .until("document.activeElement.name === 'action'")
        .await;
    browser.press(&[Key::Tab]).await;
    browser
        .until("document.activeElement.name === 'fault'")
        .await;
    browser.press(&[Key::Tab]).await;
    browser
        .until("document.activeElement.name === 'amount'")
        .await;
    browser
        .press(&[Key::Backspace, Key::Backspace, Key::Backspace])
        .await;
    browser.keys("418").await;
    browser.press(&[Key::Enter]).await;
    browser.shows(".request .status", &["→ 418"]).await;
    browser.shows(".request .badge", &["rolled-back"]).await;
    let result = browser
        .eval("document.querySelector('.result').textContent")
        .await;
    assert!(
        result.as_str().unwrap().starts_with("POST /todos: 418"),
        "{result}"
    );
}

on_each_backend!(
    held_transactions_and_leases_are_shown,
    many_tabs_are_open_at_once,
    an_action_without_a_target_shows_a_hint,
    a_fault_without_effect_is_announced,
    row_counts_of_concurrent_requests_are_not_attributed,
    requests_of_other_clients_are_shown,
    the_console_works_by_keyboard,
);
