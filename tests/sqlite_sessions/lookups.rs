//! A reading connection on which only statements of a library have run is used again without a check.

use rocket::futures::future::join_all;
use rocket::{get, post, routes};
use rocket_tx::{Error, Settlement};

use super::{notes, run_in_read, send_sql, sqlite, state_of_read, swallow, write};
use crate::support::lookup::Library;
use crate::support::{Backend, Stage};

#[get("/lookup")]
async fn lookup(mut library: Library) -> Result<String, Error> {
    let notes: Vec<String> = sqlx::query_scalar("SELECT text FROM notes ORDER BY text")
        .fetch_all(sqlite(library.0.connection()))
        .await?;
    library.0.finish();
    Ok(notes.join(","))
}

/// Runs SQL from the test, as no library may.
#[post("/lookup/<ending>", data = "<sql>")]
async fn changes(ending: &str, sql: String, mut library: Library) {
    swallow(library.0.connection(), sql).await;
    if ending == "finished" {
        library.0.finish();
    }
}

async fn stage(readers: &str) -> Stage {
    let settings = [("databases.main.max_connections", readers)];
    Stage::with(Backend::Sqlite, &settings, |rocket| {
        let all = routes![lookup, changes, state_of_read, run_in_read, write, notes];
        rocket.mount("/", all).attach(Settlement::new())
    })
    .await
}

const CHANGE: &str = "PRAGMA reverse_unordered_selects = ON";

#[rocket::async_test]
async fn only_a_finished_lookup_is_not_checked() {
    let stage = stage("1").await;
    let state = stage.send("GET /state/read").await.body;
    assert_eq!(stage.send("GET /lookup").await.body, "");
    // A request of which the lookup does not say that it has left the connection unchanged.
    send_sql(&stage, "POST /lookup/dropped", CHANGE).await;
    assert_eq!(stage.send("GET /state/read").await.body, state);
    // The change is seen, so there was no check. The handler after it is checked.
    send_sql(&stage, "POST /lookup/finished", CHANGE).await;
    assert_ne!(stage.send("GET /state/read").await.body, state);
    assert_eq!(stage.send("GET /state/read").await.body, state);
}

#[rocket::async_test]
async fn a_change_of_a_handler_is_found_between_lookups() {
    let stage = stage("2").await;
    let state = stage.send("GET /state/read").await.body;
    let changes = [
        CHANGE,
        "PRAGMA query_only = OFF",
        "PRAGMA busy_timeout = 1",
        "BEGIN; SELECT count(*) FROM notes",
    ];
    for (change, sql) in changes.into_iter().enumerate() {
        for number in 0..3 {
            assert_eq!(stage.send("GET /lookup").await.status, 200);
            send_sql(&stage, "POST /run/read/200", sql).await;
            assert_eq!(stage.send("GET /lookup").await.status, 200);
            assert_eq!(stage.send("GET /state/read").await.body, state, "{sql}");
            // A reader in a transaction would not see it.
            let text = format!("{change}-{number}");
            assert_eq!(stage.send(&format!("POST /note/{text}")).await.status, 201);
            for _ in 0..3 {
                let notes = stage.send("GET /lookup").await.body;
                assert!(notes.split(',').any(|note| note == text), "{sql}: {notes}");
            }
        }
    }
}

#[rocket::async_test]
async fn each_request_that_waits_for_a_reader_gets_one() {
    for readers in ["1", "2", "3"] {
        let stage = stage(readers).await;
        for _ in 0..20 {
            let requests = (0..16).map(|number| {
                stage.send(match number % 4 {
                    0 => "GET /notes",
                    _ => "GET /lookup",
                })
            });
            for response in join_all(requests).await {
                assert_eq!(response.status, 200, "{readers}: {response:?}");
            }
        }
        stage.nothing_is_stuck().await;
    }
}
