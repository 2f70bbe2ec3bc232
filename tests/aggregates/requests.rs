//! Aggregates as guards of a request: staged, leased, settled with everything else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocket::futures::future::{join, join_all};
use rocket::http::Status;
use rocket::{Build, Rocket, State, get, post, routes};
use rocket_tx::aggregate::{self, Aggregate, Aggregates, Leases};
use rocket_tx::tx::{ReadOnly, Serializable};
use rocket_tx::{Begin, Error, Read, Settlement, Tx};

use super::{Added, Counter};
use crate::support::{Audit, Backend, Main, Stage, eventually};

type Counters = Aggregates<Main, Counter>;

async fn get(counters: &Counters, id: &str) -> Result<Counter, Error> {
    counters.get(id).await?.ok_or(Error::NotFound)
}

async fn add(counters: &Counters, id: &str, number: i64) -> Result<i64, Error> {
    let mut counter = get(counters, id).await?;
    counter.record(Added { number })?;
    counters.commit(&mut counter).await?;
    Ok(counter.total)
}

#[post("/new/<id>")]
async fn new(id: &str, counters: Counters) -> Result<(), Error> {
    let mut counter = Counter::fresh(id)?;
    counter.record(Added { number: 0 })?;
    Ok(counters.commit(&mut counter).await?)
}

#[post("/add/<id>")]
async fn add_one(id: &str, counters: Counters) -> Result<String, Error> {
    Ok(add(&counters, id, 1).await?.to_string())
}

#[get("/total/<id>")]
async fn total(id: &str, counters: Counters) -> Result<String, Error> {
    let counter = counters.peek(id).await?.ok_or(Error::NotFound)?;
    Ok(format!("{} at {}", counter.total, counter.version()))
}

/// What is staged is seen by whoever loads again; a key is taken once.
#[post("/twice/<id>")]
async fn twice(id: &str, counters: Counters) -> Result<String, Error> {
    let started = Instant::now();
    let one = get(&counters, id).await?;
    add(&counters, id, 10).await?;
    add(&counters, id, 100).await?;
    let (two, three) = join(get(&counters, id), get(&counters, id)).await;
    assert!(started.elapsed() < Duration::from_secs(3), "it waited");
    assert!(two?.entity().is_leased());
    drop(one);
    Ok(three?.total.to_string())
}

/// The second commit was made on what the first has changed.
#[post("/stale/<id>")]
async fn stale(id: &str, counters: Counters) -> Result<Status, Error> {
    let mut one = get(&counters, id).await?;
    let mut two = get(&counters, id).await?;
    one.record(Added { number: 1 })?;
    two.record(Added { number: 2 })?;
    counters.commit(&mut one).await?;
    let refused = counters.commit(&mut two).await;
    assert!(matches!(refused, Err(aggregate::Error::Conflict(_))));
    assert_eq!(two.entity().new_events().len(), 1, "it is as before");
    Ok(Status::Ok)
}

#[post("/one-by-one/<ids>")]
async fn one_by_one(ids: &str, counters: Counters, audit: Begin<Audit>) -> Result<(), Error> {
    for id in ids.split(',') {
        add(&counters, id, 1).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Begins the transaction of `main` first, because it is attached first.
    drop(audit.begin().await?);
    Ok(())
}

/// A transaction first, which others may be waiting for.
#[post("/transaction-first/<which>/<id>")]
async fn transaction_first(
    which: &str,
    id: &str,
    counters: Counters,
    main: Begin<Main>,
    audit: Begin<Audit>,
) -> Result<(), Error> {
    match which {
        "main" => drop(main.begin().await?),
        _ => drop(audit.begin().await?),
    }
    add(&counters, id, 1).await?;
    add(&counters, id, 1).await?;
    Ok(())
}

/// The transaction is in the handler's hands: nothing can be read through it.
#[post("/checked-out/<id>")]
async fn checked_out(id: &str, counters: Counters, _tx: Tx<Main>) -> Result<(), Error> {
    add(&counters, id, 1).await.map(drop)
}

#[post("/serializable/<id>")]
async fn serializable(
    id: &str,
    counters: Counters,
    main: Begin<Main, Serializable>,
) -> Result<(), Error> {
    drop(main.begin().await?);
    add(&counters, id, 1).await.map(drop)
}

#[post("/read-only/<id>")]
async fn read_only(id: &str, counters: Counters, main: Begin<Main, ReadOnly>) -> Result<(), Error> {
    drop(main.begin().await?);
    add(&counters, id, 1).await.map(drop)
}

/// A connection of another database is held; who waits would keep it from others.
#[post("/reading/<id>")]
async fn reading(id: &str, _read: Read<Audit>, counters: Counters) -> Result<(), Error> {
    add(&counters, id, 1).await.map(drop)
}

async fn released(leases: &Leases<Main>) {
    for _ in 0..2_000 {
        if leases.leases().await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it was not released in 2 s");
}

#[post("/dropped/<id>")]
async fn dropped(id: &str, counters: Counters, leases: &State<Leases<Main>>) -> Result<(), Error> {
    let counter = get(&counters, id).await?;
    assert_eq!(leases.leases().await?.len(), 1);
    drop(counter);
    released(leases).await;
    assert!(counters.get("none").await?.is_none());
    released(leases).await;
    let counter = get(&counters, id).await?;
    counters.abort(counter).await?;
    assert!(leases.leases().await?.is_empty());
    let counter = get(&counters, id).await?;
    counters.unlock(id).await?;
    assert!(leases.leases().await?.is_empty());
    drop(counter);
    Ok(())
}

#[post("/flush/<id>")]
async fn flush(id: &str, counters: Counters, audit: Begin<Audit>) -> Result<Status, Error> {
    let mut stale = counters.peek(id).await?.ok_or(Error::NotFound)?;
    add(&counters, id, 1).await?;
    counters.flush().await?;
    assert_eq!(
        get(&counters, id).await?.total,
        1,
        "through the transaction"
    );
    stale.record(Added { number: 5 })?;
    counters.commit(&mut stale).await?;
    // The handler sees it, and answers as it likes.
    let refused = counters.flush().await;
    assert!(matches!(refused, Err(aggregate::Error::Conflict(_))));
    drop(audit.begin().await?);
    Ok(Status::Conflict)
}

/// Stored at once, and more of it afterwards.
#[post("/flushed/<id>/<status>")]
async fn flushed(id: &str, status: u16, counters: Counters) -> Result<Status, Error> {
    add(&counters, id, 1).await?;
    counters.flush().await?;
    counters.flush().await?;
    add(&counters, id, 1).await?;
    Ok(Status::new(status))
}

#[post("/status/<status>/<id>")]
async fn status(status: u16, id: &str, counters: Counters) -> Result<Status, Error> {
    add(&counters, id, 1).await?;
    Ok(Status::new(status))
}

#[post("/panic/<id>")]
async fn panicking(id: &str, counters: Counters) -> Result<(), Error> {
    let _counter = get(&counters, id).await?;
    add(&counters, id, 1).await?;
    panic!("with a lease");
}

/// An aggregate and its repository that outlive the request.
#[derive(Default)]
struct Kept(Mutex<Option<(Counter, Counters)>>);

#[post("/leak/<id>")]
async fn leak(id: &str, counters: Counters, kept: &State<Arc<Kept>>) -> Result<(), Error> {
    let counter = get(&counters, id).await?;
    *kept.0.lock() = Some((counter, counters));
    Ok(())
}

#[post("/late")]
async fn late(kept: &State<Arc<Kept>>) -> Status {
    let (mut counter, counters) = kept.0.lock().take().unwrap();
    counter.record(Added { number: 1 }).unwrap();
    assert!(counters.commit(&mut counter).await.is_err());
    assert!(counters.get("a").await.is_err());
    drop(counter);
    Status::Ok
}

/// Holds `b`, then asks for what sorts before it.
#[post("/backwards")]
async fn backwards(counters: Counters) -> Result<(), Error> {
    let _b = get(&counters, "b").await?;
    let _a = get(&counters, "a").await?;
    Ok(())
}

fn service(rocket: Rocket<Build>) -> Rocket<Build> {
    let all = routes![
        new,
        add_one,
        total,
        twice,
        stale,
        one_by_one,
        transaction_first,
        checked_out,
        serializable,
        read_only,
        reading,
        dropped,
        flush,
        flushed,
        status,
        panicking,
        leak,
        late,
        backwards,
    ];
    rocket
        .attach(aggregate::init::<Main>())
        .attach(Settlement::new())
        .manage(Arc::new(Kept::default()))
        .mount("/", all)
}

async fn stage(backend: Backend) -> Stage {
    let settings = [
        ("lease_max_wait", "\"3s\""),
        ("lease_retry_interval", "\"10ms\""),
    ];
    let stage = Stage::with(backend, &settings, service).await;
    for id in ["a", "b"] {
        let answer = stage.send(&format!("POST /new/{id}")).await;
        assert_eq!(answer.told(), (200, Some("committed")));
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
        let answer = stage.send(&format!("POST /status/{status}/a")).await;
        assert_eq!(answer.told(), (status, Some(outcome)));
        assert_eq!(total_of(&stage, "a").await, total);
    }
    let answer = stage.send("POST /panic/a").await;
    assert_eq!(answer.told(), (500, Some("rolled-back")));
    assert_eq!(total_of(&stage, "a").await, "2 at 3");
    let answer = stage.send("POST /new/a").await;
    assert_eq!(answer.told(), (409, Some("rolled-back")));
    assert_eq!(answer.kind(), "conflict");
    free(&stage).await;
}

async fn a_key_is_taken_once(backend: Backend) {
    let stage = stage(backend).await;
    let answer = stage.send("POST /twice/a").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "110"));
    assert_eq!(total_of(&stage, "a").await, "110 at 3");
    let answer = stage.send("POST /stale/a").await;
    assert_eq!(answer.told(), (200, Some("committed")));
    assert_eq!(total_of(&stage, "a").await, "111 at 4");
    free(&stage).await;
}

async fn what_is_dropped_is_free(backend: Backend) {
    let stage = stage(backend).await;
    let answer = stage.send("POST /dropped/a").await;
    assert_eq!(answer.told(), (200, Some("committed")), "{answer:?}");
    free(&stage).await;
}

async fn flushing_shows_the_error(backend: Backend) {
    let stage = stage(backend).await;
    let answer = stage.send("POST /flush/a").await;
    assert_eq!(answer.told(), (409, Some("rolled-back")), "{answer:?}");
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    let answer = stage.send("POST /flushed/a/502").await;
    assert_eq!(answer.told(), (502, Some("rolled-back")));
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    let answer = stage.send("POST /flushed/a/200").await;
    assert_eq!(answer.told(), (200, Some("committed")), "{answer:?}");
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
            let answer = stage.send(&format!("POST /one-by-one/{order}")).await;
            match answer.told() {
                (200, Some("committed")) => done += 1,
                (503, Some("rolled-back")) => {}
                _ => panic!("{answer:?}"),
            }
        }
        done
    };
    let started = Instant::now();
    let done: usize = join_all((0..6).map(client)).await.into_iter().sum();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "somebody waited: {took:?}");
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
        let answer = stage
            .send(&format!("POST /transaction-first/{which}/a"))
            .await;
        assert_eq!(
            answer.told(),
            (200, Some("committed")),
            "{which}: {answer:?}"
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
        let answer = stage.send(what).await;
        let took = started.elapsed();
        assert_eq!(
            answer.told(),
            (503, Some("rolled-back")),
            "{what}: {answer:?}"
        );
        assert!(took < Duration::from_secs(2), "{what}: {took:?}");
    }
    let started = Instant::now();
    let answer = stage.send("POST /add/a").await;
    assert_eq!(answer.told(), (503, Some("rolled-back")));
    assert!(started.elapsed() > Duration::from_millis(2_900), "it waits");
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
            let answer = stage.send(&format!("POST /{what}")).await;
            match answer.told() {
                (200, Some("committed")) => done += if number % 3 == 2 { 1 } else { 2 },
                (503, Some("rolled-back")) => {}
                _ => panic!("{answer:?}"),
            }
        }
        done
    };
    let started = Instant::now();
    let done: usize = join_all((0..9).map(client)).await.into_iter().sum();
    assert!(started.elapsed() < Duration::from_secs(20));
    let stored = total_of(&stage, "a").await;
    assert!(
        stored.starts_with(&format!("{done} at ")),
        "{done}: {stored}"
    );
    free(&stage).await;
}

async fn guards_that_do_not_mix_say_so(backend: Backend) {
    let stage = stage(backend).await;
    let answer = stage.send("POST /checked-out/a").await;
    assert_eq!(answer.told(), (500, Some("rolled-back")));
    assert_eq!(answer.kind(), "checked-out");
    let answer = stage.send("POST /read-only/a").await;
    assert_eq!(answer.told(), (500, Some("rolled-back")));
    assert_eq!(answer.kind(), "weaker");
    let answer = stage.send("POST /serializable/a").await;
    match backend {
        // Its transactions are that anyway.
        Backend::Sqlite => assert_eq!(answer.told(), (200, Some("committed"))),
        Backend::Postgres => {
            assert_eq!(answer.told(), (500, Some("rolled-back")));
            assert!(answer.body.contains("READ COMMITTED"), "{answer:?}");
        }
    }
    free(&stage).await;
}

async fn nothing_comes_after_the_answer(backend: Backend) {
    let stage = stage(backend).await;
    let answer = stage.send("POST /leak/a").await;
    assert_eq!(answer.told(), (200, Some("committed")));
    free(&stage).await;
    assert_eq!(stage.send("POST /late").await.status, 200);
    assert_eq!(total_of(&stage, "a").await, "0 at 1");
    free(&stage).await;
}

/// What another process would have.
async fn other_process(stage: &Stage) -> rocket_tx::lock::UrlLockManager {
    use rocket_db_pools::Pool;

    let figment = stage.databases.figment().focus("databases.main");
    let figment = figment.merge(("connect_timeout", 5));
    let pool = rocket_tx::db::UrlPool::init(&figment).await.unwrap();
    rocket_tx::lock::UrlLockManager::new(&pool)
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
            .mount("/", routes![add_one]);
        let said = refused(rocket).await;
        assert!(said.contains("rocket_tx::aggregate::init::<"), "{said}");
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
