//! Failures in the middle of steps: futures that are dropped half-way, concurrent tasks of one
//! request, responses that are never settled, projections that misbehave.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rocket::fairing::AdHoc;
use rocket::futures::future::join;
use rocket::http::Status;
use rocket::tokio::time::sleep;
use rocket::{Build, Rocket, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{ReadOnly, Serializable};
use rocket_tx::{Begin, Error, Settlement};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates, EventRecord, Projection};

use super::{Added, Counter};
use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

type Counters = Aggregates<Main, Counter>;

const MS: Duration = Duration::from_millis(1);

async fn get(counters: &Counters, id: &str) -> Result<Counter, Error> {
    counters.get(id).await?.ok_or(Error::NotFound)
}

async fn add(counters: &Counters, id: &str, number: i64) -> Result<(), Error> {
    let mut counter = get(counters, id).await?;
    counter.record(Added { number })?;
    Ok(counters.commit(&mut counter).await?)
}

#[post("/new/<id>")]
async fn new(id: &str, counters: Counters) -> Result<(), Error> {
    let mut counter = Counter::fresh(id)?;
    counter.record(Added { number: 0 })?;
    Ok(counters.commit(&mut counter).await?)
}

#[post("/add/<id>?<number>")]
async fn add_number(
    id: &str,
    number: i64,
    counters: Counters,
    audit: Begin<Audit>,
) -> Result<(), Error> {
    add(&counters, id, number).await?;
    note(&mut *audit.begin().await?, &format!("{id} {number}")).await?;
    Ok(())
}

/// Abandons a flush half-way. The transaction is begun before, so that it is open at that moment.
#[post("/flush/dropped")]
async fn flush_dropped(counters: Counters, main: Begin<Main>) -> Result<Status, Error> {
    let mut all = counters.get_all(&["a", "b"]).await?;
    for counter in all.iter_mut().flatten() {
        counter.record(Added { number: 1 })?;
    }
    let mut all: Vec<&mut Counter> = all.iter_mut().flatten().collect();
    counters.commit_all(&mut all).await?;
    drop(main.begin().await?);
    let mut flush = Box::pin(counters.flush());
    let polled = flush.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(flush);
    sleep(20 * MS).await;
    Ok(abandoned(&polled))
}

/// Returns 202 if the future was abandoned before its end, else 200. A server on this machine may
/// reply before the first poll ends. So tests repeat the request until one future was abandoned.
fn abandoned<T>(polled: &Poll<T>) -> Status {
    match polled {
        Poll::Ready(_) => Status::Ok,
        Poll::Pending => Status::Accepted,
    }
}

#[post("/flush/swallowed")]
async fn flush_swallowed(counters: Counters) -> Result<(), Error> {
    let mut stale = counters.peek("b").await?.ok_or(Error::NotFound)?;
    stale.record(Added { number: 5 })?;
    add(&counters, "a", 1).await?;
    add(&counters, "b", 1).await?;
    counters.flush().await?;
    counters.commit(&mut stale).await?;
    assert!(counters.flush().await.is_err());
    Ok(())
}

#[post("/begin/dropped")]
async fn begin_dropped(counters: Counters, audit: Begin<Audit>) -> Result<Status, Error> {
    add(&counters, "a", 1).await?;
    // `begin` of `audit` first begins the transaction of `main`, and is abandoned there.
    let mut begin = Box::pin(audit.begin());
    let is_abandoned = abandoned(&begin.as_mut().poll(&mut Context::from_waker(Waker::noop())));
    drop(begin);
    Ok(is_abandoned)
}

/// Holds the lease, and then begins a transaction in the database that comes after it in rank.
#[post("/forwards")]
async fn forwards(counters: Counters, audit: Begin<Audit>) -> Result<(), Error> {
    let mut counter = get(&counters, "a").await?;
    sleep(300 * MS).await;
    counter.record(Added { number: 1 })?;
    counters.commit(&mut counter).await?;
    drop(audit.begin().await?);
    Ok(())
}

/// Two tasks of one request: one waits for the lease while the other gets the database.
#[post("/at-once")]
async fn at_once(counters: Counters, audit: Begin<Audit>) -> Result<(), Error> {
    let (counter, audit) = join(get(&counters, "a"), audit.begin()).await;
    drop((counter?, audit?));
    Ok(())
}

#[post("/both/<how>")]
async fn both(how: &str, main: Begin<Main>, audit: Begin<Audit>) -> Result<(), Error> {
    if how == "at-once" {
        let (main, audit) = join(main.begin(), audit.begin()).await;
        drop((main?, audit?));
    } else {
        let _main = main.begin().await?;
        sleep(100 * MS).await;
        let _audit = audit.begin().await?;
    }
    Ok(())
}

#[post("/then-read-only")]
async fn then_read_only(counters: Counters, main: Begin<Main, ReadOnly>) -> Result<(), Error> {
    let _counter = get(&counters, "a").await?;
    drop(main.begin().await?);
    Ok(())
}

/// Begins a read-only transaction after a write was staged.
#[post("/commit-then-read-only")]
async fn commit_then_read_only(
    counters: Counters,
    main: Begin<Main, ReadOnly>,
) -> Result<(), Error> {
    add(&counters, "a", 1).await?;
    drop(main.begin().await?);
    Ok(())
}

#[post("/then-serializable")]
async fn then_serializable(
    counters: Counters,
    main: Begin<Main, Serializable>,
) -> Result<(), Error> {
    let _counter = get(&counters, "a").await?;
    drop(main.begin().await?);
    Ok(())
}

/// Leases a key again that the same request has just released.
#[post("/again")]
async fn again(counters: Counters, main: Begin<Main>) -> Result<(), Error> {
    drop(get(&counters, "a").await?);
    drop(main.begin().await?);
    add(&counters, "a", 1).await
}

/// Holds a lease past its renewal, together with the transaction that the renewal would need.
#[post("/slow")]
async fn slow(counters: Counters, main: Begin<Main>) -> Result<(), Error> {
    let mut counter = get(&counters, "a").await?;
    drop(main.begin().await?);
    sleep(2_500 * MS).await;
    counter.record(Added { number: 1 })?;
    Ok(counters.commit(&mut counter).await?)
}

/// Writes only to another database, under a lease that a renewal detects as lost.
#[post("/elsewhere")]
async fn elsewhere(counters: Counters, audit: Begin<Audit>) -> Result<(), Error> {
    let _counter = get(&counters, "a").await?;
    sleep(2_500 * MS).await;
    Ok(note(&mut *audit.begin().await?, "under a lost lease").await?)
}

/// Drops a leased aggregate on a thread without a runtime.
#[post("/thread")]
async fn thread(counters: Counters) -> Result<(), Error> {
    let counter = get(&counters, "a").await?;
    std::thread::spawn(move || drop(counter)).join().unwrap();
    Ok(())
}

/// A read model that violates a deferred constraint at the total 666, and ignores an error at 667.
struct Misbehaving;

impl Projection<Counter, UrlConnection> for Misbehaving {
    async fn project(
        &self,
        db: &mut UrlConnection,
        counter: &Counter,
        _: &[EventRecord],
    ) -> sqlx::Result<()> {
        match counter.total {
            666 => run(db, "INSERT INTO pairs (id, partner) VALUES (1, 2)").await,
            667 => {
                let _swallowed = run(db, "INSERT INTO notes (text) VALUES (NULL)").await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

async fn stage(backend: Backend) -> Stage {
    stage_with(backend, "\"10ms\"").await
}

async fn stage_with(backend: Backend, lease_retry_interval: &str) -> Stage {
    let settings = [
        // Renewed after 2 s. A lease that is gone within 5 s was released; it has not expired.
        ("lease_ttl", "\"6s\""),
        ("lease_max_wait", "\"60s\""),
        ("lease_retry_interval", lease_retry_interval),
        ("databases.audit.max_connections", "1"),
    ];
    let add = |rocket: Rocket<Build>| {
        let all = routes![
            new,
            add_number,
            flush_dropped,
            flush_swallowed,
            begin_dropped,
            forwards,
            at_once,
            both,
            then_read_only,
            commit_then_read_only,
            then_serializable,
            again,
            slow,
            elsewhere,
            thread,
        ];
        rocket
            .attach(aggregate::init::<Main>().projection::<Counter>(Misbehaving))
            .attach(Settlement::new())
            .attach(AdHoc::on_response("Panics", |request, _| {
                Box::pin(async move {
                    assert!(!request.headers().contains("X-Panic"), "on purpose");
                })
            }))
            .mount("/", all)
    };
    let stage = Stage::with(backend, &settings, add).await;
    for id in ["a", "b"] {
        assert_eq!(stage.send(&format!("POST /new/{id}")).await.status, 200);
    }
    stage
}

async fn stored(stage: &Stage) -> Vec<String> {
    let events = "SELECT stream || ' ' || sequence FROM aggregate_events ORDER BY stream, sequence";
    stage.databases.texts(In::Main, events).await
}

const BEFORE: [&str; 2] = ["counter:a 1", "counter:b 1"];

/// Waits until every lease is released, and asserts that none of them has expired.
async fn free(stage: &Stage) {
    let started = Instant::now();
    let rows = "SELECT lock_key FROM aggregate_locks";
    eventually("every lease is released", async || {
        stage.databases.texts(In::Main, rows).await.is_empty()
    })
    .await;
    assert!(started.elapsed() < 5_000 * MS, "a lease may have expired");
    stage.nothing_is_stuck().await;
}

async fn a_response_that_is_never_settled_leaves_nothing(backend: Backend) {
    let stage = stage(backend).await;
    for _ in 0..6 {
        let request = stage.http.request("POST /add/a?number=1");
        let response = request.header("X-Panic", "yes").send().await;
        assert!(response.is_err() || response.unwrap().status() == 500);
    }
    free(&stage).await;
    assert_eq!(stored(&stage).await, BEFORE);
    let response = stage.send("POST /add/a?number=1").await;
    assert_eq!(response.summary(), (200, Some("committed")));
}

async fn an_abandoned_or_failed_flush_dooms_the_request(backend: Backend) {
    let stage = stage(backend).await;
    // A flush that is done before the drop is a success. Repeat until one is abandoned half-way.
    let mut done = 0;
    let response = loop {
        let response = stage.send("POST /flush/dropped").await;
        if response.summary() != (200, Some("committed")) {
            break response;
        }
        done += 1;
        assert!(done < 100, "no flush was abandoned");
    };
    assert_eq!(
        response.summary(),
        (500, Some("rolled-back")),
        "{response:?}"
    );
    assert_eq!(stored(&stage).await.len(), 2 + 2 * done);
    let before = stored(&stage).await;
    let response = stage.send("POST /flush/swallowed").await;
    assert_eq!(response.outcome(), Some("rolled-back"));
    assert!([409, 500].contains(&response.status), "{response:?}");
    assert_eq!(stored(&stage).await, before);
    free(&stage).await;
}

async fn an_abandoned_begin_loses_no_staged_events(backend: Backend) {
    let stage = stage(backend).await;
    let (mut sent, mut abandoned) = (0, 0);
    while abandoned < 3 {
        let response = stage.send("POST /begin/dropped").await;
        assert_eq!(response.outcome(), Some("committed"), "{response:?}");
        sent += 1;
        abandoned += u32::from(response.status == 202);
        assert_eq!(stored(&stage).await.len(), 2 + sent);
        assert!(sent < 100, "no begin was abandoned");
    }
    free(&stage).await;
}

async fn a_projection_is_checked_before_anything_is_committed(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /add/a?number=666").await;
    assert_eq!(
        response.summary(),
        (409, Some("rolled-back")),
        "{response:?}"
    );
    let response = stage.send("POST /add/b?number=667").await;
    match backend {
        // A SQLite transaction survives an ordinary error.
        Backend::Sqlite => assert_eq!(response.summary(), (200, Some("committed"))),
        Backend::Postgres => {
            assert_eq!(
                response.summary(),
                (500, Some("rolled-back")),
                "{response:?}"
            );
            assert_eq!(stored(&stage).await, BEFORE);
            assert!(stage.notes().await.is_empty());
        }
    }
    assert!(!stage.notes().await.contains(&"a 666".to_owned()));
    free(&stage).await;
}

/// The tasks of one request do not wait for each other, so two such requests both succeed.
async fn tasks_of_one_request_do_not_deadlock(backend: Backend) {
    let stage = stage(backend).await;
    for (one, other) in [
        ("POST /forwards", "POST /at-once"),
        ("POST /both/in-order", "POST /both/at-once"),
    ] {
        let started = Instant::now();
        let later = async {
            sleep(30 * MS).await;
            stage.send(other).await
        };
        let (first, second) = join(stage.send(one), later).await;
        assert_eq!(first.summary(), (200, Some("committed")), "{first:?}");
        assert_eq!(second.summary(), (200, Some("committed")), "{second:?}");
        assert!(
            started.elapsed() < 30_000 * MS,
            "{one}: {:?}",
            started.elapsed()
        );
    }
    free(&stage).await;
}

async fn a_lease_works_with_stricter_transactions_where_possible(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /then-read-only").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    let response = stage.send("POST /commit-then-read-only").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    assert_eq!(stored(&stage).await.len(), 3);
    let response = stage.send("POST /then-serializable").await;
    match backend {
        Backend::Sqlite => assert_eq!(response.summary(), (200, Some("committed"))),
        Backend::Postgres => {
            assert_eq!(response.summary(), (500, Some("rolled-back")));
            assert_eq!(response.kind(), "isolation");
        }
    }
    free(&stage).await;
}

async fn settlement_does_not_wait_for_a_waiting_renewal(backend: Backend) {
    let stage = stage(backend).await;
    let started = Instant::now();
    let response = stage.send("POST /slow").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    // A settlement that waited for the renewal would wait for `busy_timeout`, which is 5 s.
    assert!(started.elapsed() < 7_000 * MS, "{:?}", started.elapsed());
    free(&stage).await;
}

async fn a_lost_lease_rolls_back_writes_to_other_databases(backend: Backend) {
    let stage = stage(backend).await;
    let losing = async {
        sleep(200 * MS).await;
        let lose = "DELETE FROM aggregate_locks";
        stage.databases.execute(In::Main, lose).await;
    };
    let (response, ()) = join(stage.send("POST /elsewhere"), losing).await;
    assert_eq!(
        response.summary(),
        (409, Some("rolled-back")),
        "{response:?}"
    );
    assert!(stage.notes().await.is_empty());
    free(&stage).await;
}

async fn a_released_key_can_be_leased_again_at_once(backend: Backend) {
    // The request waits one retry interval for its own release.
    let stage = stage_with(backend, "\"20s\"").await;
    for _ in 0..20 {
        let response = stage.send("POST /again").await;
        assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    }
    let response = stage.send("POST /thread").await;
    assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
    free(&stage).await;
}

on_each_backend!(
    a_response_that_is_never_settled_leaves_nothing,
    an_abandoned_or_failed_flush_dooms_the_request,
    an_abandoned_begin_loses_no_staged_events,
    a_projection_is_checked_before_anything_is_committed,
    tasks_of_one_request_do_not_deadlock,
    a_lease_works_with_stricter_transactions_where_possible,
    settlement_does_not_wait_for_a_waiting_renewal,
    a_lost_lease_rolls_back_writes_to_other_databases,
    a_released_key_can_be_leased_again_at_once,
);
