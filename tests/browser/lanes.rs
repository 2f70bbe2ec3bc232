//! The lanes of requests, on the console and on the aggregates page: they show what the feed
//! reports.

use std::sync::Arc;

use rocket::futures::future::join;
use rocket::serde::json::{Value, from_value, json};

use super::{open, wait_for_listener};
use crate::aggregates::{create, leases, rename};
use crate::feed::Listener;
use crate::support::{Backend, Break, Browser, Databases, In, Service, eventually};

/// A shape of the picture: its lane, its kind, and the times at which it begins and ends.
type Shape = (String, String, Option<u64>, Option<u64>);

/// Returns the shapes that the feed calls for, in no particular order.
fn expected(events: &[Value]) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    // The last event was a statement.
    let mut is_statement = false;
    for event in events {
        let at = event["at_us"].as_u64();
        let resource = event["resource"].as_str().unwrap_or_default();
        let mut add = |lane: &str, kind: &str, from: Option<u64>, to: Option<u64>| {
            shapes.push((lane.to_owned(), kind.to_owned(), from, to));
        };
        let since = |took: &Value| at.zip(took.as_u64()).map(|(at, took)| at - took);
        let about = event["about"].as_str().unwrap_or_default();
        match event["what"].as_str().unwrap() {
            "began" => add(resource, "began", at, at),
            "checked-out" => add(resource, "out", at, None),
            "checked-in" => end(&mut shapes, resource, "out", at),
            what @ ("verdict" | "settled") => add("", what, at, at),
            "step" => {
                let kind = match event["action"].as_str().unwrap() {
                    _ if !event["failed"].is_null() => "refused",
                    "prepare" | "prepare-transaction" => "prepared",
                    "rollback" => "rolled-back",
                    _ => "committed",
                };
                add(resource, kind, since(&event["took_us"]), at);
            }
            _ if about == "lease" => {
                let says = &event["says"];
                let lane = format!("aggregates in {}", says["database"].as_str().unwrap());
                match says["state"] == "waiting" {
                    true => add(&lane, "waiting", at, None),
                    false => end(&mut shapes, &lane, "waiting", at),
                }
            }
            _ if about == "statement" && is_statement => shapes.last_mut().unwrap().3 = at,
            _ if about == "statement" => {
                add(
                    "statements",
                    "statement",
                    since(&event["says"]["took_us"]),
                    at,
                );
            }
            what => panic!("unexpected: {what} {about}"),
        }
        is_statement = about == "statement";
    }
    shapes
}

/// Ends the last shape of this kind in a lane.
fn end(shapes: &mut [Shape], lane: &str, kind: &str, at: Option<u64>) {
    let mut shapes = shapes.iter_mut().rev();
    let shape = shapes.find(|shape| shape.0 == lane && shape.1 == kind);
    shape.unwrap().3 = at;
}

/// Returns the shapes that are drawn in the elements that match `css`.
async fn drawn(browser: &Browser, css: &str) -> Vec<Shape> {
    let script = format!(
        "[...document.querySelectorAll('{css} .picture [data-kind]')].map(({{ dataset: {{ lane, kind, from, to }} }}) => [lane, kind, from, to])"
    );
    let shapes: Vec<[String; 4]> = from_value(browser.eval(&script).await).unwrap();
    let time = |text: &str| text.parse().ok();
    let shapes = shapes.into_iter();
    shapes
        .map(|[lane, kind, from, to]| (lane, kind, time(&from), time(&to)))
        .collect()
}

/// Compares the newest request of the console with its events in the feed.
async fn assert_drawn(browser: &Browser, events: &[Value]) {
    let mut expected = expected(events);
    expected.sort();
    let newest = ".request:first-child";
    eventually("the feed is drawn", async || {
        let mut drawn = drawn(browser, newest).await;
        drawn.sort();
        drawn.len() == expected.len()
    })
    .await;
    let mut shapes = drawn(browser, newest).await;
    shapes.sort();
    assert_eq!(shapes, expected);
    assert_consistent(browser, newest).await;
}

/// Checks that the picture and the text have the same events, and that later is further right.
async fn assert_consistent(browser: &Browser, css: &str) {
    let checked = browser
        .eval(&format!(
            "(() => {{
                const shapes = [...document.querySelectorAll('{css} .picture [data-kind]')];
                const lines = document.querySelectorAll('{css} .timeline li');
                const events = new Set(shapes.flatMap((shape) => shape.dataset.events.split(' ').map((n) => `${{shape.dataset.request}} ${{n}}`)));
                if (events.size !== lines.length) return `${{events.size}} drawn, ${{lines.length}} in words`;
                const left = (shape) => shape.getBoundingClientRect().left + (shape.dataset.kind === 'began' ? 5 : 0);
                for (const one of shapes) for (const other of shapes) {{
                    if (one.dataset.from && other.dataset.from && Number(one.dataset.from) < Number(other.dataset.from)
                        && left(one) > left(other) + 2) return `${{one.outerHTML}} is not left of ${{other.outerHTML}}`;
                }}
                return '';
            }})()"
        ))
        .await;
    assert_eq!(checked, "");
}

async fn the_lanes_show_what_the_feed_reports(backend: Backend) {
    let service = Service::start(backend).await;
    create(&service.http, "milk").await;
    let browser = open(&service, "/console").await;
    wait_for_listener(&service).await;
    let mut listener = Listener::on(&service.http).await;
    let is_settled = |event: &Value| event["what"] == "settled";
    for (fault, outcome, main, audit) in [
        ("", "committed", "committed", "committed"),
        ("respond=502", "rolled-back", "rolled back", "rolled back"),
        ("commit", "rolled-back", "rolled back", "rolled back"),
    ] {
        let response = service.new_todo("a", fault).await;
        assert_eq!(response.outcome(), Some(outcome));
        let events = listener.of(&response, is_settled).await;
        assert_drawn(&browser, &events).await;
        let states = browser
            .eval("[...document.querySelectorAll('.request:first-child .state')].map((one) => one.textContent).filter(Boolean)")
            .await;
        assert_eq!(states, json!([main, audit]), "{fault}");
    }

    // The second command waits for the lease of the first.
    let slow = rename(&service.http, "milk", "slow", "delay=1000@loaded");
    let waiting = async {
        eventually("the key is leased", async || {
            !leases(&service.http).await.is_empty()
        })
        .await;
        rename(&service.http, "milk", "waiting", "").await
    };
    let (slow, waiting) = join(slow, waiting).await;
    let slow = expected(&listener.of(&slow, is_settled).await);
    let events = listener.of(&waiting, is_settled).await;
    assert_drawn(&browser, &events).await;
    let kind = |shapes: &[Shape], kind: &str| {
        let shape = shapes.iter().find(|shape| shape.1 == kind);
        shape.unwrap().clone()
    };
    let wait = kind(&expected(&events), "waiting");
    let verdict = kind(&slow, "verdict");
    assert!(wait.2 < verdict.2 && verdict.2 < wait.3, "{wait:?}");
    // The lease is used only once the wait has ended.
    let joined = kind(&expected(&events), "began");
    assert!(wait.3 <= joined.2, "{wait:?} {joined:?}");
    assert_eq!(browser.errors().await, [""; 0]);
}

/// A database that has not committed, or not yet, is drawn as what it is.
async fn partial_and_in_doubt_are_drawn() {
    for (atomic, broken, outcome, state) in [
        ("off", "COMMIT", "partial", "rolled back"),
        ("auto", "COMMIT PREPARED", "committed", "in doubt"),
    ] {
        let mut databases = Databases::new(Backend::Postgres).await;
        let proxy = databases.by_proxy(In::Audit).await;
        let variables = [("ROCKET_ATOMIC_COMMIT", atomic)];
        let service = Service::on(Arc::new(databases), &variables).await;
        let browser = open(&service, "/console").await;
        wait_for_listener(&service).await;
        let mut listener = Listener::on(&service.http).await;
        proxy.set(broken, Break::Before);
        let response = service.new_todo("a", "").await;
        assert_eq!(response.outcome(), Some(outcome));
        let events = listener.of(&response, |event| event["what"] == "settled");
        assert_drawn(&browser, &events.await).await;
        let states = browser
            .eval("[...document.querySelectorAll('.request .state')].map((one) => one.textContent).filter(Boolean)")
            .await;
        assert_eq!(states, json!(["committed", state]), "{outcome}");
    }
}

/// A transaction that is still held when its request ends is drawn as condemned, until it is dropped.
async fn a_condemned_transaction_is_drawn(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    wait_for_listener(&service).await;
    let mut listener = Listener::on(&service.http).await;
    let response = service.new_todo("a", "leak=3000").await;
    browser
        .until("document.querySelector('.request .state.bad')?.textContent === 'condemned'")
        .await;
    let events = listener.of(&response, |event| event["what"] == "settled");
    let settled = events.await;
    let settled = settled.last().unwrap()["at_us"].as_u64();
    let shapes = drawn(&browser, ".request").await;
    let condemned: Vec<_> = shapes
        .iter()
        .filter(|shape| shape.1 == "condemned")
        .collect();
    assert_eq!(condemned.len(), 1, "{shapes:?}");
    assert!(condemned[0].2 < settled, "{condemned:?}");
}

/// Of a request that began before the page was opened, the page says so, and draws the rest.
async fn a_request_that_began_earlier_is_marked(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/contract").await;
    let slow = service.new_todo("slow", "delay=6000");
    let opened = async {
        eventually("the request is running", async || {
            let registry: Value = service.get("/registry").await.json();
            registry["outstanding"].as_array().unwrap().len() == 2
        })
        .await;
        let console = format!("{}/console", service.http.base);
        browser.client.goto(&console).await.unwrap();
        wait_for_listener(&service).await;
    };
    let (response, ()) = join(slow, opened).await;
    assert_eq!(response.outcome(), Some("committed"));
    browser.shows(".request .badge", &["committed"]).await;
    browser
        .shows(
            ".request .gap",
            &["This request began before this page could see it. Its first events are missing."],
        )
        .await;
    browser
        .until("document.querySelectorAll('.request .held.cut-off').length === 2")
        .await;
    browser
        .until("document.querySelector('.picture').ariaLabel.includes('main: its beginning was not seen, committed.')")
        .await;
    let kinds = drawn(&browser, ".request").await;
    assert!(kinds.iter().all(|shape| shape.1 != "began"), "{kinds:?}");
    assert_consistent(&browser, ".request").await;
}

/// Creates the example of the aggregates page, and waits until its race is over and drawn.
pub(super) async fn race_an_example(browser: &Browser) {
    browser.click("[name=example]").await;
    browser
        .shows(".runners .badge", &["committed", "committed"])
        .await;
    browser
        .until(
            "document.querySelectorAll('.raced .picture [data-kind=settled]').length === 2
             && !document.querySelector('.race .go').disabled",
        )
        .await;
}

/// With one click, the empty page has an example, and shows how the second command waits.
async fn the_aggregates_page_starts_with_an_example(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/aggregates").await;
    let mut listener = Listener::on(&service.http).await;
    browser.shows(".first h2", &["There is no todo yet"]).await;
    race_an_example(&browser).await;
    browser.shows(".first h2", &[]).await;
    browser.shows(".version", &["version 3"]).await;
    assert_consistent(&browser, ".raced").await;

    let of = async |name: &str| {
        let css = format!("[data-request=\"{name}\"]");
        let all = browser
            .eval(&format!(
                "[...document.querySelectorAll('.raced .picture {css}')].map(({{ dataset: {{ lane, kind, from, to }} }}) => [lane, kind, from, to])"
            ))
            .await;
        from_value::<Vec<[String; 4]>>(all).unwrap()
    };
    let time = |shapes: &[[String; 4]], kind: &str, place: usize| -> u64 {
        let shape = shapes.iter().find(|shape| shape[1] == kind);
        shape.unwrap()[place].parse().unwrap()
    };
    let (first, second) = (of("rename, first").await, of("rename, second").await);
    let verdict = time(&first, "verdict", 2);
    assert!(time(&second, "waiting", 2) < verdict, "{second:?}");
    assert!(time(&second, "waiting", 3) > verdict, "{second:?}");

    // The drawn times are those of the feed.
    let mut settled = Vec::new();
    eventually("the feed has reported both", async || {
        listener.more().await;
        let events = listener.events.values().flatten();
        let events = events.filter(|event| event["what"] == "settled" && event["status"] == 200);
        settled = events.map(|event| event["at_us"].as_u64()).collect();
        settled.len() == 2
    })
    .await;
    let drawn = [&first, &second].map(|shapes| Some(time(shapes, "settled", 2)));
    settled.sort();
    assert_eq!(settled, drawn);
    assert_eq!(browser.errors().await, [""; 0]);
}

/// Who is no operator may not see the feed: the race runs, and the page says why nothing is drawn.
async fn without_the_feed_the_race_has_no_lanes(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let service = Service::on(databases, &[("ROCKET_ADMIN_FROM", "loopback")]).await;
    let browser = open(&service, "/aggregates").await;
    browser.devtools("Network.enable", json!({})).await;
    // A request with a header of a proxy is not a local one.
    let headers = json!({"headers": {"X-Forwarded-For": "192.0.2.1"}});
    browser
        .devtools("Network.setExtraHTTPHeaders", headers)
        .await;
    browser.click("[name=example]").await;
    browser
        .shows(".runners .badge", &["committed", "committed"])
        .await;
    browser
        .shows(
            ".unseen",
            &["Only operators can see the event feed, so the lanes cannot be drawn here."],
        )
        .await;
    browser.shows(".raced .seen", &[]).await;
}

mod postgres_only {
    mod postgres {
        #[rocket::async_test]
        async fn partial_and_in_doubt_are_drawn() {
            super::super::partial_and_in_doubt_are_drawn().await;
        }
    }
}

on_each_backend!(
    the_lanes_show_what_the_feed_reports,
    a_condemned_transaction_is_drawn,
    a_request_that_began_earlier_is_marked,
    the_aggregates_page_starts_with_an_example,
    without_the_feed_the_race_has_no_lanes,
);
