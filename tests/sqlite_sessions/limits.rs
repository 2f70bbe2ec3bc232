//! How long statements wait for another process. Leases have a limit of their own, and so does a
//! transaction that may not wait. A handler always has the configured one.

use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::{Begin, Error, Settlement, Tx};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates};

use super::{run_in_tx, send_sql, sqlite, write};
use crate::aggregates::{Added, Counter};
use crate::support::{Audit, Backend, Main, Stage, eventually};

/// Takes a lease, and stores an event.
#[post("/lease")]
async fn lease(counters: Aggregates<Main, Counter>) -> Result<Status, Error> {
    let mut counter = match counters.get("one").await? {
        Some(counter) => counter,
        None => Counter::fresh("one")?,
    };
    counter.record(Added { number: 1 })?;
    counters.commit(&mut counter).await?;
    Ok(Status::Created)
}

/// Takes a lease, and releases it without a transaction.
#[post("/lease-only")]
async fn lease_only(counters: Aggregates<Main, Counter>) -> Result<Status, Error> {
    drop(counters.get("one").await?);
    Ok(Status::Created)
}

/// Returns the limit, and a setting that is not reset: it changes no result.
#[get("/limit")]
async fn limit(mut main: Tx<Main>) -> Result<String, Error> {
    let limit: i64 = sqlx::query_scalar("PRAGMA busy_timeout")
        .fetch_one(sqlite(&mut main))
        .await?;
    let mark: i64 = sqlx::query_scalar("PRAGMA analysis_limit")
        .fetch_one(sqlite(&mut main))
        .await?;
    Ok(format!("{limit} {mark}"))
}

/// Begins in the wrong order, so BEGIN waits for nothing.
#[get("/limit/out-of-order")]
async fn out_of_order(_audit: Tx<Audit>, main: Begin<Main>) -> Result<String, Error> {
    let mut main = main.begin().await?;
    let limit: i64 = sqlx::query_scalar("PRAGMA busy_timeout")
        .fetch_one(sqlite(&mut main))
        .await?;
    Ok(limit.to_string())
}

async fn stage() -> Stage {
    let settings = [
        ("databases.main.busy_timeout", "\"1234ms\""),
        ("lease_retry_interval", "\"50ms\""),
    ];
    Stage::with(Backend::Sqlite, &settings, |rocket| {
        let all = routes![lease, lease_only, limit, out_of_order, run_in_tx, write];
        rocket
            .attach(aggregate::init::<Main>())
            .attach(Settlement::new())
            .mount("/", all)
    })
    .await
}

#[rocket::async_test]
async fn a_handler_waits_as_configured() {
    let stage = stage().await;
    for before in ["lease", "lease-only", "note/one"] {
        assert_eq!(stage.send(&format!("POST /{before}")).await.status, 201);
        assert_eq!(stage.send("GET /limit").await.body, "1234 0", "{before}");
        assert_eq!(stage.send("POST /lease-only").await.status, 201);
        eventually(
            "the lease is released, and the writer is free",
            async || {
                let response = stage.send("GET /limit/out-of-order").await;
                assert!(
                    response.status == 503 || response.body == "1234",
                    "{response:?}"
                );
                response.status == 200
            },
        )
        .await;
    }
}

/// Whatever limit a handler sets, also the one of the leases.
#[rocket::async_test]
async fn a_limit_that_a_handler_sets_ends_with_its_request() {
    let stage = stage().await;
    for limit in [0, 1, 50, 1234, 99_999] {
        for status in [201, 422] {
            for next in ["lease", "lease-only", "note"] {
                let sql = format!("PRAGMA busy_timeout = {limit}");
                send_sql(&stage, &format!("POST /run/tx/{status}"), &sql).await;
                let next = match next {
                    "note" => format!("note/{limit}-{status}"),
                    other => other.to_owned(),
                };
                assert_eq!(stage.send(&format!("POST /{next}")).await.status, 201);
                assert_eq!(stage.send("GET /limit").await.body, "1234 0", "{limit}");
            }
        }
    }
}

/// A limit that this library has set is no reason to open another connection.
#[rocket::async_test]
async fn leases_leave_the_connection_open() {
    let stage = stage().await;
    send_sql(&stage, "POST /run/tx/201", "PRAGMA analysis_limit = 7").await;
    for before in ["lease", "lease-only", "lease", "note/one"] {
        assert_eq!(stage.send(&format!("POST /{before}")).await.status, 201);
        assert_eq!(stage.send("GET /limit").await.body, "1234 7", "{before}");
    }
    send_sql(&stage, "POST /run/tx/201", "PRAGMA busy_timeout = 50").await;
    assert_eq!(stage.send("GET /limit").await.body, "1234 0");
}
