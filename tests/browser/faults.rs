//! Everything that can be made to go wrong from the console, and what is left of it.

use fantoccini::key::Key;
use rocket::serde::json::{Value, json};

use super::console::{CREATE, RENAME, SHARE, newest, run};
use super::{again, open, recounted, titles};
use crate::support::{Backend, Browser, Service};

/// What a fault is called, what it is tried on, what becomes of it, and what the timeline says.
type Expected = (&'static str, &'static str, &'static str, &'static str);

fn expected(backend: Backend) -> Vec<Expected> {
    let disconnected = match backend {
        Backend::Sqlite => ("committed", "Verdict: commit — status 201"),
        Backend::Postgres => ("rolled-back", "main: prepare, refused: "),
    };
    vec![
        (
            "nothing",
            CREATE,
            "committed",
            "Verdict: commit — status 201",
        ),
        (
            "the response is a failure",
            CREATE,
            "rolled-back",
            "Verdict: roll back — status 502",
        ),
        (
            "the request is doomed",
            CREATE,
            "rolled-back",
            "Verdict: roll back — doomed: ",
        ),
        (
            "it panics",
            CREATE,
            "rolled-back",
            "Verdict: roll back — panic",
        ),
        (
            "it swallows a SQL error",
            CREATE,
            "rolled-back",
            "main: prepare, refused: ",
        ),
        (
            "it leaks its transaction",
            CREATE,
            "rolled-back",
            "Verdict: roll back — still checked out: main",
        ),
        ("it is slow", CREATE, "committed", "main: COMMIT"),
        (
            "COMMIT is refused",
            CREATE,
            "rolled-back",
            "main: prepare, refused: ",
        ),
        (
            "the session ends (Postgres)",
            CREATE,
            disconnected.0,
            disconnected.1,
        ),
        (
            "it refuses (share)",
            SHARE,
            "rolled-back",
            "Verdict: roll back — status 502",
        ),
        (
            "it does not respond (share)",
            SHARE,
            "rolled-back",
            "Verdict: roll back — status 504",
        ),
        (
            "it is held for a long time",
            RENAME,
            "committed",
            "aggregates in main: prepare",
        ),
        (
            "another holder takes it over",
            RENAME,
            "rolled-back",
            "aggregates in main: prepare, refused: the lease of",
        ),
    ]
}

/// Tried in a test of their own.
const CRASHES: [&str; 3] = [
    "it is killed before COMMIT",
    "it is killed between two COMMITs",
    "it is killed after COMMIT",
];

async fn everything_stored(service: &Service) -> Vec<Value> {
    let mut lists = Vec::new();
    for list in ["/todos", "/audit?limit=200", "/aggregates/todos?limit=200"] {
        lists.push(service.get(list).await.json());
    }
    lists
}

async fn each_fault_leaves_things_as_they_were(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    run(&browser, CREATE, "nothing").await;
    run(&browser, "Create an aggregate", "nothing").await;

    let offered = browser
        .eval("[...document.querySelectorAll('[name=fault] option')].map((one) => one.label)");
    let offered = offered.await;
    let expected = expected(backend);
    let known = expected.iter().map(|fault| fault.0).chain(CRASHES);
    assert_eq!(
        offered,
        json!(known.collect::<Vec<_>>()),
        "each fault is tried"
    );

    for (fault, action, outcome, told) in expected {
        let before = everything_stored(&service).await;
        run(&browser, action, fault).await;
        recounted(&browser).await;
        assert_eq!(newest(&browser, ".badge").await, outcome, "{fault}");
        let timeline = newest(&browser, ".timeline").await;
        assert!(timeline.contains(told), "{fault}: {timeline}");
        assert!(timeline.contains("statement"), "{fault}: {timeline}");
        let stored = everything_stored(&service).await;
        let said = newest(&browser, ".said").await;
        match outcome {
            "committed" => assert_ne!(stored, before, "{fault}"),
            _ => {
                assert_eq!(stored, before, "{fault}");
                assert!(
                    said.contains("Everything was rolled back"),
                    "{fault}: {said}"
                );
            }
        }
        if action == CREATE {
            let rows = newest(&browser, ".rows td.more").await;
            assert_eq!(
                rows.lines().count(),
                2,
                "a todo, and a line about it: {rows}"
            );
            let (kept, gone) = (
                newest(&browser, ".rows .kept").await,
                newest(&browser, ".rows .gone").await,
            );
            let after = if outcome == "committed" { kept } else { gone };
            assert_eq!(after.lines().count(), 2, "{fault}");
        }
        free_leases(&service, &browser).await;
    }
    assert_eq!(browser.errors().await, [""; 0]);
    let host = service.http.base.trim_start_matches("http://");
    assert_eq!(browser.hosts().await, [host]);
    drop(browser);
    service.stop().await;
}

/// What the fault `expire-lease` leaves, an operator has to free.
async fn free_leases(service: &Service, browser: &Browser) {
    let stored: Value = service.get("/leases").await.json();
    if stored["leases"] != json!([]) {
        // By keyboard: the ages beside it change, and it keeps the focus.
        browser
            .until("document.querySelector('.leases button')")
            .await;
        browser
            .eval("document.querySelector('.leases button').focus()")
            .await;
        let left = "document.querySelector('.leases td:nth-child(4)').textContent";
        let first = browser.eval(left).await;
        browser.until(&format!("{left} !== {first}")).await;
        browser.press(&[Key::Enter]).await;
    }
    browser
        .until("document.querySelector('.leases').textContent.includes('None')")
        .await;
    let stored: Value = service.get("/leases").await.json();
    assert_eq!(stored["leases"], json!([]));
}

async fn the_process_is_killed_and_comes_back(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.new_todo("kept", "").await;
    let browser = open(&service, "/console").await;
    for (fault, todos, audit) in [(CRASHES[0], 1, 1), (CRASHES[1], 2, 1), (CRASHES[2], 3, 2)] {
        run(&browser, CREATE, fault).await;
        let said = newest(&browser, ".said").await;
        assert!(said.starts_with("The connection was lost"), "{said}");
        browser
            .until("document.querySelector('.away').checkVisibility()")
            .await;
        service = again(service).await;
        browser
            .until("!document.querySelector('.away').checkVisibility()")
            .await;
        assert_eq!(titles(&service).await.len(), todos, "{fault}");
        let lines: Vec<Value> = service.get("/audit").await.json();
        assert_eq!(lines.len(), audit, "{fault}");
    }
    run(&browser, CREATE, "nothing").await;
    assert_eq!(newest(&browser, ".badge").await, "committed");
}

on_each_backend!(
    each_fault_leaves_things_as_they_were,
    the_process_is_killed_and_comes_back,
);
