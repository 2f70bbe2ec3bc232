//! Aggregates as guards of a request: staged, leased, settled with everything else.

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

/// No row of a lease is left.
async fn free(stage: &Stage) {
    let rows = "SELECT lock_key FROM aggregate_locks";
    eventually("every lease is released", async || {
        let held = stage.databases.texts(crate::support::In::Main, rows).await;
        held.is_empty()
    })
    .await;
    stage.nothing_is_stuck().await;
}

async fn the_answer_decides(backend: Backend) {
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

async fn a_key_is_taken_once(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /twice/a").await;
    assert_eq!((response.status, response.body.as_str()), (200, "110"));
    assert_eq!(total_of(&stage, "a").await, "110 at 3");
    let response = stage.send("POST /stale/a").await;
    assert_eq!(response.summary(), (200, Some("committed")));
    assert_eq!(total_of(&stage, "a").await, "111 at 4");
    free(&stage).await;
}

async fn what_is_dropped_is_free(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /dropped/a").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    free(&stage).await;
}

async fn flushing_shows_the_error(backend: Backend) {
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

/// They get what is free, or a 503 at once; nobody waits for the other.
async fn one_by_one_in_opposite_orders(backend: Backend) {
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
    // Those that go forwards only wait.
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

async fn who_holds_a_transaction_never_waits(backend: Backend) {
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

    // Somebody else has the lease, for longer than the test lasts.
    let locks = other_process(&stage).await;
    let held = locks.acquire("counter:a").await.unwrap();
    for what in [
        "POST /transaction-first/main/a",
        "POST /transaction-first/audit/a",
        "POST /reading/a",
        "POST /backwards",
    ] {
        let started = Instant::now();
        let response = stage.send(what).await;
        let took = started.elapsed();
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{what}: {response:?}"
        );
        assert!(response.body.contains("must not wait"), "{response:?}");
        assert!(took < Duration::from_secs(7), "{what}: {took:?}");
    }
    let started = Instant::now();
    let response = stage.send("POST /add/a").await;
    assert_eq!(response.summary(), (503, Some("rolled-back")));
    assert!(
        response.body.contains("was held by another holder for"),
        "{response:?}"
    );
    assert!(started.elapsed() > Duration::from_millis(7_900), "it waits");
    drop(held);
    free(&stage).await;
}

/// All at once, so that each could wait for another.
async fn transactions_first_never_hang(backend: Backend) {
    let stage = stage(backend).await;
    let client = async |number: usize| {
        let what = [
            "transaction-first/main/a",
            "transaction-first/audit/a",
            "add/a",
        ][number % 3];
        let mut done = 0;
        for _ in 0..8 {
            let response = stage.send(&format!("POST /{what}")).await;
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

async fn guards_that_do_not_mix_say_so(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /checked-out/a").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    assert_eq!(response.kind(), "checked-out");
    let response = stage.send("POST /read-only/a").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    assert_eq!(response.kind(), "weaker");
    let response = stage.send("POST /serializable/a").await;
    match backend {
        // Its transactions are that anyway.
        Backend::Sqlite => assert_eq!(response.summary(), (200, Some("committed"))),
        Backend::Postgres => {
            assert_eq!(response.summary(), (500, Some("rolled-back")));
            assert!(response.body.contains("READ COMMITTED"), "{response:?}");
        }
    }
    free(&stage).await;
}

async fn nothing_comes_after_the_answer(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /leak/a").await;
    assert_eq!(response.summary(), (200, Some("committed")));
    free(&stage).await;
    assert_eq!(stage.send("POST /late").await.status, 200);
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    free(&stage).await;
}

/// What another process would have.
async fn other_process(stage: &Stage) -> rocket_tx_aggregates::lock::UrlLockManager {
    use rocket_db_pools::Pool;

    let figment = stage.databases.figment().focus("databases.main");
    let figment = figment.merge(("connect_timeout", 5));
    let pool = rocket_tx::db::UrlPool::init(&figment).await.unwrap();
    rocket_tx_aggregates::lock::UrlLockManager::new(&pool)
}

on_each_backend!(
    the_answer_decides,
    a_key_is_taken_once,
    what_is_dropped_is_free,
    flushing_shows_the_error,
    one_by_one_in_opposite_orders,
    who_holds_a_transaction_never_waits,
    transactions_first_never_hang,
    guards_that_do_not_mix_say_so,
    nothing_comes_after_the_answer,
);

mod launch {
    use super::*;
    use crate::support::Databases;
    use crate::support::launch::refused;
    use rocket_tx::db;

    #[rocket::async_test]
    async fn a_service_without_aggregates_is_told_the_missing_line() {
        let databases = Databases::with_tables(Backend::Sqlite).await;
        let rocket = rocket::custom(databases.figment())
            .attach(db::init::<Main>())
            .attach(Settlement::new())
            .mount("/", routes![service::add_one]);
        let said = refused(rocket).await;
        assert!(
            said.contains("rocket_tx_aggregates::aggregate::init::<"),
            "{said}"
        );
    }

    #[rocket::async_test]
    async fn settings_that_make_no_sense_stop_the_launch() {
        for (key, value) in [
            ("lease_ttl", "1ms"),
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
            let said = refused(rocket).await;
            assert!(said.contains(&format!("`{key}`")), "{said}");
        }
        let databases = Databases::with_tables(Backend::Sqlite).await;
        let rocket = rocket::custom(databases.figment())
            .attach(aggregate::init::<Main>())
            .attach(db::init::<Main>());
        let said = refused(rocket).await;
        assert!(said.contains("rocket_tx::db::init::<"), "{said}");
    }
}
