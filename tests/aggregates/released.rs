//! The transaction that stores the events also releases the leases.

use rocket::http::Status;
use rocket::{post, routes};
use rocket_tx::{Begin, Error, Settlement};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates};

use super::{Added, Counter};
use crate::support::stage::run;
use crate::support::{Backend, In, Main, Stage};

type Counters = Aggregates<Main, Counter>;

const ALL: [&str; 3] = ["a", "b", "c"];

#[post("/new")]
async fn new(counters: Counters) -> Result<Status, Error> {
    for id in ALL {
        let mut counter = Counter::fresh(id)?;
        counter.record(Added { number: 0 })?;
        counters.commit(&mut counter).await?;
    }
    Ok(Status::Created)
}

/// Leases all counters, writes `a` and `b`, and changes what SQLite calls the
/// columns of its results.
/// `lost`: the counter whose lease the handler deletes, `b` or `c`.
#[post("/columns?<lost>")]
async fn columns(
    lost: Option<&str>,
    counters: Counters,
    main: Begin<Main>,
) -> Result<Status, Error> {
    const NAMES: &str = "PRAGMA full_column_names = ON; PRAGMA short_column_names = OFF; \
                         PRAGMA count_changes = ON";

    let mut all = counters.get_all(&ALL).await?;
    for counter in all[..2].iter_mut().flatten() {
        counter.record(Added { number: 1 })?;
        counters.commit(counter).await?;
    }
    let mut main = main.begin().await?;
    run(&mut main, NAMES).await?;
    let delete = match lost {
        Some("b") => "DELETE FROM aggregate_locks WHERE lock_key LIKE '%:b'",
        Some(_) => "DELETE FROM aggregate_locks WHERE lock_key LIKE '%:c'",
        None => "SELECT 1",
    };
    run(&mut main, delete).await?;
    Ok(Status::Created)
}

async fn stored(stage: &Stage) -> Vec<String> {
    let events = "SELECT stream || ' ' || sequence FROM aggregate_events ORDER BY stream, sequence";
    stage.databases.texts(In::Main, events).await
}

#[rocket::async_test]
async fn column_names_change_neither_the_events_nor_the_leases() {
    const BEFORE: [&str; 3] = ["counter:a 1", "counter:b 1", "counter:c 1"];

    let settings = [("lease_ttl", "\"60s\"")];
    let stage = Stage::with(Backend::Sqlite, &settings, |rocket| {
        rocket
            .attach(aggregate::init::<Main>())
            .attach(Settlement::new())
            .mount("/", routes![new, columns])
    })
    .await;
    assert_eq!(stage.send("POST /new").await.status, 201);
    let leases = "SELECT lock_key FROM aggregate_locks";
    for lost in ["b", "c"] {
        let response = stage.send(&format!("POST /columns?lost={lost}")).await;
        assert_eq!(
            response.summary(),
            (409, Some("rolled-back")),
            "{response:?}"
        );
        assert_eq!(stored(&stage).await, BEFORE, "{lost}");
        // The rollback has brought the row back, and released the lease.
        assert_eq!(stage.databases.texts(In::Main, leases).await, [""; 0]);
    }
    let response = stage.send("POST /columns").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    let after = [
        "counter:a 1",
        "counter:a 2",
        "counter:b 1",
        "counter:b 2",
        "counter:c 1",
    ];
    assert_eq!(stored(&stage).await, after);
    assert_eq!(stage.databases.texts(In::Main, leases).await, [""; 0]);
    stage.nothing_is_stuck().await;
}
