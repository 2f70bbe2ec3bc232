//! Aggregates as guards of a request: changes are staged, keys are leased, and everything is
//! settled with the request.

mod service;

use std::time::{Duration, Instant};

use rocket::futures::future::join_all;
use rocket::routes;
use rocket_tx::Settlement;
use rocket_tx_aggregates::aggregate;

use self::service::service;
use crate::support::{Backend, Main, Stage, eventually};

async fn stage(backend: Backend) -> Stage {
    let settings = [
        ("lease_max_wait", "\"8s\""),
        ("lease_retry_interval", "\"10ms\""),
    ];
    let stage = Stage::with(backend, &settings, service).await;
    for id in ["a", "b"] {
        let response = stage.send(&format!("POST /new/{id}")).await;
        assert_eq!(response.summary(), (200, Some("committed")));
    }
    stage
}

async fn total_of(stage: &Stage, id: &str) -> String {
    stage.send(&format!("GET /total/{id}")).await.body
}

/// Waits until every lease is released.
async fn free(stage: &Stage) {
    let rows = "SELECT lock_key FROM aggregate_locks";
    eventually("every lease is released", async || {
        let held = stage.databases.texts(crate::support::In::Main, rows).await;
        held.is_empty()
    })
    .await;
    stage.nothing_is_stuck().await;
}

async fn the_response_decides_about_the_commit(backend: Backend) {
    let stage = stage(backend).await;
    for (status, outcome, total) in [
        (200, "committed", "1 at 2"),
        (202, "committed", "2 at 3"),
        (404, "rolled-back", "2 at 3"),
        (503, "rolled-back", "2 at 3"),
    ] {
        let response = stage.send(&format!("POST /status/{status}/a")).await;
        assert_eq!(response.summary(), (status, Some(outcome)));
        assert_eq!(total_of(&stage, "a").await, total);
    }
    let response = stage.send("POST /panic/a").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    assert_eq!(total_of(&stage, "a").await, "2 at 3");
    let response = stage.send("POST /new/a").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert_eq!(response.kind(), "conflict");
    free(&stage).await;
}

async fn a_request_leases_a_key_only_once(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /twice/a").await;
    assert_eq!((response.status, response.body.as_str()), (200, "110"));
    assert_eq!(total_of(&stage, "a").await, "110 at 3");
    let response = stage.send("POST /stale/a").await;
    assert_eq!(response.summary(), (200, Some("committed")));
    assert_eq!(total_of(&stage, "a").await, "111 at 4");
    free(&stage).await;
}

async fn a_dropped_aggregate_releases_its_lease(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /dropped/a").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    free(&stage).await;
}

async fn flush_returns_the_error(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /flush/a").await;
    assert_eq!(
        response.summary(),
        (409, Some("rolled-back")),
        "{response:?}"
    );
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    let response = stage.send("POST /flushed/a/502").await;
    assert_eq!(response.summary(), (502, Some("rolled-back")));
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    let response = stage.send("POST /flushed/a/200").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    assert_eq!(total_of(&stage, "a").await, "2 at 3");
    free(&stage).await;
}

/// Requests in the wrong order get a free lease, or a 503 at once. They never wait for each other.
async fn loads_in_opposite_orders_never_deadlock(backend: Backend) {
    let stage = stage(backend).await;
    let client = async |number: usize| {
        let order = if number.is_multiple_of(2) {
            "a,b"
        } else {
            "b,a"
        };
        let mut done = 0;
        for _ in 0..10 {
            let response = stage.send(&format!("POST /one-by-one/{order}")).await;
            match response.summary() {
                (200, Some("committed")) => done += 1,
                (503, Some("rolled-back")) => {
                    assert!(response.body.contains("must not wait"), "{response:?}");
                }
                _ => panic!("{response:?}"),
            }
        }
        done
    };
    let done: usize = join_all((0..6).map(client)).await.into_iter().sum();
    // The requests in the right order wait and always succeed.
    assert!(done >= 30, "{done}");
    assert_eq!(
        total_of(&stage, "a").await,
        format!("{done} at {}", done + 1)
    );
    assert_eq!(
        total_of(&stage, "b").await,
        format!("{done} at {}", done + 1)
    );
    free(&stage).await;
}

async fn a_request_with_a_transaction_never_waits_for_a_lease(backend: Backend) {
    let stage = stage(backend).await;
    for which in ["main", "audit"] {
        let response = stage
            .send(&format!("POST /transaction-first/{which}/a"))
            .await;
        assert_eq!(
            response.summary(),
            (200, Some("committed")),
            "{which}: {response:?}"
        );
    }
    assert_eq!(total_of(&stage, "a").await, "4 at 5");

    // Another process holds the lease, for longer than the test lasts.
    let locks = other_process(&stage).await;
    let held = locks.acquire("counter:a").await.unwrap();
    for line in [
        "POST /transaction-first/main/a",
        "POST /transaction-first/audit/a",
        "POST /reading/a",
        "POST /backwards",
    ] {
        let started = Instant::now();
        let response = stage.send(line).await;
        let took = started.elapsed();
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{line}: {response:?}"
        );
        assert!(response.body.contains("must not wait"), "{response:?}");
        assert!(took < Duration::from_secs(7), "{line}: {took:?}");
    }
    let started = Instant::now();
    let response = stage.send("POST /add/a").await;
    assert_eq!(response.summary(), (503, Some("rolled-back")));
    assert!(
        response.body.contains("was held by another holder for"),
        "{response:?}"
    );
    assert!(started.elapsed() > Duration::from_millis(7_900), "no wait");
    drop(held);
    free(&stage).await;
}

/// All requests run concurrently, so that each could wait for another.
async fn transactions_first_never_hang(backend: Backend) {
    let stage = stage(backend).await;
    let client = async |number: usize| {
        let path = [
            "transaction-first/main/a",
            "transaction-first/audit/a",
            "add/a",
        ][number % 3];
        let mut done = 0;
        for _ in 0..8 {
            let response = stage.send(&format!("POST /{path}")).await;
            match response.summary() {
                (200, Some("committed")) => done += if number % 3 == 2 { 1 } else { 2 },
                (503, Some("rolled-back")) => {}
                _ => panic!("{response:?}"),
            }
        }
        done
    };
    let started = Instant::now();
    let done: usize = join_all((0..9).map(client)).await.into_iter().sum();
    assert!(started.elapsed() < Duration::from_secs(60));
    let stored = total_of(&stage, "a").await;
    assert!(
        stored.starts_with(&format!("{done} at ")),
        "{done}: {stored}"
    );
    free(&stage).await;
}

async fn incompatible_guards_are_reported(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /checked-out/a").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    assert_eq!(response.kind(), "checked-out");
    let response = stage.send("POST /read-only/a").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    assert_eq!(response.kind(), "weaker");
    let response = stage.send("POST /serializable/a").await;
    match backend {
        // SQLite transactions are always serializable.
        Backend::Sqlite => assert_eq!(response.summary(), (200, Some("committed"))),
        Backend::Postgres => {
            assert_eq!(response.summary(), (500, Some("rolled-back")));
            assert!(response.body.contains("READ COMMITTED"), "{response:?}");
        }
    }
    free(&stage).await;
}

async fn nothing_is_written_after_the_response(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /leak/a").await;
    assert_eq!(response.summary(), (200, Some("committed")));
    free(&stage).await;
    assert_eq!(stage.send("POST /late").await.status, 200);
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    free(&stage).await;
}

/// Returns a lock manager as another process would have it.
async fn other_process(stage: &Stage) -> rocket_tx_aggregates::lock::UrlLockManager {
    use rocket_db_pools::Pool;

    let figment = stage.databases.figment().focus("databases.main");
    let figment = figment.merge(("connect_timeout", 5));
    let pool = rocket_tx::db::UrlPool::init(&figment).await.unwrap();
    rocket_tx_aggregates::lock::UrlLockManager::new(&pool)
}

on_each_backend!(
    the_response_decides_about_the_commit,
    a_request_leases_a_key_only_once,
    a_dropped_aggregate_releases_its_lease,
    flush_returns_the_error,
    loads_in_opposite_orders_never_deadlock,
    a_request_with_a_transaction_never_waits_for_a_lease,
    transactions_first_never_hang,
    incompatible_guards_are_reported,
    nothing_is_written_after_the_response,
);

mod launch {
    use super::*;
    use crate::support::Databases;
    use crate::support::launch::refused;
    use rocket_tx::db;

    #[rocket::async_test]
    async fn a_launch_without_aggregates_names_the_missing_line() {
        let databases = Databases::with_tables(Backend::Sqlite).await;
        let rocket = rocket::custom(databases.figment())
            .attach(db::init::<Main>())
            .attach(Settlement::new())
            .mount("/", routes![service::add_one]);
        let log = refused(rocket).await;
        assert!(
            log.contains("rocket_tx_aggregates::aggregate::init::<"),
            "{log}"
        );
    }

    #[rocket::async_test]
    async fn leases_without_a_connection_stop_the_launch() {
        let databases = Databases::with_tables(Backend::Sqlite).await;
        let rocket = rocket::custom(databases.figment().merge(("lease_max_connections", 0)))
            .attach(db::init::<Main>())
            .attach(aggregate::init::<Main>())
            .attach(Settlement::new());
        let log = refused(rocket).await;
        assert!(
            log.contains(
                "`lease_max_connections`: 0 connections can take no lease; set at least 1 in \
                 Rocket.toml or the environment"
            ),
            "{log}"
        );
    }

    #[rocket::async_test]
    async fn invalid_settings_stop_the_launch() {
        for (key, value) in [
            ("lease_ttl", "1ms"),
            ("lease_ttl", "99ms"),
            ("lease_ttl", "soon"),
            ("lease_retry_interval", "0s"),
            ("lease_sweep_interval", "0s"),
            ("snapshot_interval", "often"),
            ("snapshot_interval", "-1"),
        ] {
            let databases = Databases::with_tables(Backend::Sqlite).await;
            let rocket = rocket::custom(databases.figment().merge((key, value)))
                .attach(db::init::<Main>())
                .attach(aggregate::init::<Main>())
                .attach(Settlement::new());
            let log = refused(rocket).await;
            assert!(log.contains(&format!("`{key}`")), "{log}");
        }
        let databases = Databases::with_tables(Backend::Sqlite).await;
        let rocket = rocket::custom(databases.figment())
            .attach(aggregate::init::<Main>())
            .attach(db::init::<Main>());
        let log = refused(rocket).await;
        assert!(log.contains("rocket_tx::db::init::<"), "{log}");
    }
}
