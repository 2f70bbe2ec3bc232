//! The pages of the reference service, in a real browser.

mod aggregates;
mod console;
mod faults;
mod lanes;
mod looks;
mod readable;
mod restarts;
mod todos;

use std::sync::Arc;

use crate::support::{Browser, Service, eventually};

/// Opens a page of a service, on a desktop screen.
async fn open(service: &Service, path: &str) -> Browser {
    Browser::at(&format!("{}{path}", service.http.base), 1200, 900).await
}

/// Waits until one page listens to the events of the service.
async fn wait_for_listener(service: &Service) {
    eventually("one page listens", async || service.listeners().await == 1).await;
}

/// Returns the titles of the todos, as the service lists them.
async fn titles(service: &Service) -> Vec<String> {
    let todos: Vec<rocket::serde::json::Value> = service.get("/todos").await.json();
    let titles = todos.iter().map(|todo| todo["title"].as_str().unwrap());
    titles.map(str::to_owned).collect()
}

/// Kills the service and starts it again, at the address that its open pages use.
async fn restart(old: Service) -> Service {
    let port = old.http.base.rsplit(':').next().unwrap().to_owned();
    let databases = Arc::clone(&old.databases);
    drop(old);
    Service::on(databases, &[("ROCKET_PORT", &port)]).await
}

/// Runs the request that is selected in the console, and waits until it shows the whole result.
async fn run_once(browser: &Browser) {
    browser.click(".go").await;
    wait_for_row_counts(browser).await;
    browser
        .until("!document.querySelector('.go').disabled")
        .await;
}

/// Waits until the newest card of the console shows its final row counts.
async fn wait_for_row_counts(browser: &Browser) {
    browser
        .until(
            "(document.querySelector('.request:first-child .rows tr:last-child td:last-child')\
             ?.textContent ?? '–') !== '–'",
        )
        .await;
}
