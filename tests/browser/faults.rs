//! Each fault that the console offers, and its effect on the stored data.

use fantoccini::key::Key;
use rocket::serde::json::{Value, json};

use super::console::{CREATE, RENAME, SHARE, newest, run};
use super::{open, restart, titles, wait_for_row_counts};
use crate::support::{Backend, Browser, Service};

/// The label of a fault, the action it is tried on, the outcome, and a part of the timeline.
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

/// Faults that are tried in a separate test.
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

async fn each_fault_that_rolls_back_leaves_the_data_unchanged(backend: Backend) {
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

    for (fault, action, outcome, entry) in expected {
        let before = everything_stored(&service).await;
        run(&browser, action, fault).await;
        wait_for_row_counts(&browser).await;
        assert_eq!(newest(&browser, ".badge").await, outcome, "{fault}");
        let timeline = newest(&browser, ".timeline").await;
        assert!(timeline.contains(entry), "{fault}: {timeline}");
        assert!(timeline.contains("statement"), "{fault}: {timeline}");
        let stored = everything_stored(&service).await;
        let summary = newest(&browser, ".said").await;
        match outcome {
            "committed" => assert_ne!(stored, before, "{fault}"),
            _ => {
                assert_eq!(stored, before, "{fault}");
                assert!(
                    summary.contains("Everything was rolled back"),
                    "{fault}: {summary}"
                );
            }
        }
        if action == CREATE {
            let rows = newest(&browser, ".rows td.more").await;
            assert_eq!(
                rows.lines().count(),
                2,
                "a todo and its audit entry: {rows}"
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

/// Frees the lease that the fault `expire-lease` leaves, as an operator must do.
async fn free_leases(service: &Service, browser: &Browser) {
    let stored: Value = service.get("/leases").await.json();
    if stored["leases"] != json!([]) {
        // By keyboard. The button must keep the focus while the ages next to it change.
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

async fn the_console_recovers_when_the_process_is_killed(backend: Backend) {
    let mut service = Service::start(backend).await;
    service.new_todo("kept", "").await;
    let browser = open(&service, "/console").await;
    for (fault, todos, audit) in [(CRASHES[0], 1, 1), (CRASHES[1], 2, 1), (CRASHES[2], 3, 2)] {
        run(&browser, CREATE, fault).await;
        let summary = newest(&browser, ".said").await;
        assert!(summary.starts_with("The connection was lost"), "{summary}");
        browser
            .until("document.querySelector('.away').checkVisibility()")
            .await;
        service = restart(service).await;
        browser
            .until("!document.querySelector('.away').checkVisibility()")
            .await;
        assert_eq!(titles(&service).await.len(), todos, "{fault}");
        let entries: Vec<Value> = service.get("/audit").await.json();
        assert_eq!(entries.len(), audit, "{fault}");
    }
    run(&browser, CREATE, "nothing").await;
    assert_eq!(newest(&browser, ".badge").await, "committed");
}

on_each_backend!(
    each_fault_that_rolls_back_leaves_the_data_unchanged,
    the_console_recovers_when_the_process_is_killed,
);
