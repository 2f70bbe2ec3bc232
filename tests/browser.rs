//! The pages, in a real browser.

mod aggregates;
mod console;
mod faults;
mod looks;
mod restarts;
mod todos;

use std::sync::Arc;

use crate::support::{Browser, Service, eventually};

/// A page of a service, on a desk's screen.
async fn open(service: &Service, path: &str) -> Browser {
    Browser::at(&format!("{}{path}", service.http.base), 1200, 900).await
}

/// One page listens to what happens.
async fn heard(service: &Service) {
    eventually("one page listens", async || service.listeners().await == 1).await;
}

/// What the service itself says about its todos.
async fn titles(service: &Service) -> Vec<String> {
    let todos: Vec<rocket::serde::json::Value> = service.get("/todos").await.json();
    let titles = todos.iter().map(|todo| todo["title"].as_str().unwrap());
    titles.map(str::to_owned).collect()
}

/// The same service again, at the address where its pages look for it.
async fn again(old: Service) -> Service {
    let port = old.http.base.rsplit(':').next().unwrap().to_owned();
    let databases = Arc::clone(&old.databases);
    drop(old);
    Service::on(databases, &[("ROCKET_PORT", &port)]).await
}

/// Runs what the console has chosen, and waits for everything that it shows of it.
async fn run_once(browser: &Browser) {
    browser.click(".go").await;
    recounted(browser).await;
    browser
        .until("!document.querySelector('.go').disabled")
        .await;
}

/// The newest card of the console has counted the rows for the last time.
async fn recounted(browser: &Browser) {
    browser
        .until(
            "(document.querySelector('.request:first-child .rows tr:last-child td:last-child')\
             ?.textContent ?? '–') !== '–'",
        )
        .await;
}
