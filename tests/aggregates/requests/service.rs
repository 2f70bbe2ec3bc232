//! Handlers that load, change and commit aggregates, correctly and incorrectly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocket::futures::future::join;
use rocket::http::Status;
use rocket::{Build, Rocket, State, get, post, routes};
use rocket_tx::tx::{ReadOnly, Serializable};
use rocket_tx::{Begin, Error, Read, Settlement, Tx};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates, Leases};

use super::super::{Added, Counter};
use crate::support::{Audit, Main};

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
pub async fn add_one(id: &str, counters: Counters) -> Result<String, Error> {
    Ok(add(&counters, id, 1).await?.to_string())
}

#[get("/total/<id>")]
async fn total(id: &str, counters: Counters) -> Result<String, Error> {
    let counter = counters.peek(id).await?.ok_or(Error::NotFound)?;
    Ok(format!("{} at {}", counter.total, counter.version()))
}

/// A later load in the same request sees staged events and uses the same lease.
#[post("/twice/<id>")]
async fn twice(id: &str, counters: Counters) -> Result<String, Error> {
    let started = Instant::now();
    let one = get(&counters, id).await?;
    add(&counters, id, 10).await?;
    add(&counters, id, 100).await?;
    let (two, three) = join(get(&counters, id), get(&counters, id)).await;
    assert!(started.elapsed() < Duration::from_secs(7), "a load waited");
    assert!(two?.entity().is_leased());
    drop(one);
    Ok(three?.total.to_string())
}

/// The second commit is refused, because its aggregate was loaded before the first commit.
#[post("/stale/<id>")]
async fn stale(id: &str, counters: Counters) -> Result<Status, Error> {
    let mut one = get(&counters, id).await?;
    let mut two = get(&counters, id).await?;
    one.record(Added { number: 1 })?;
    two.record(Added { number: 2 })?;
    counters.commit(&mut one).await?;
    let refused = counters.commit(&mut two).await;
    assert!(matches!(
        refused,
        Err(aggregate::AggregateError::Conflict(_))
    ));
    assert_eq!(two.entity().new_events().len(), 1, "unchanged");
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

/// Begins a transaction first, which other requests may be waiting for.
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

/// The handler holds the transaction, so the repository cannot read through it.
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

/// Holds a connection of another database, so a wait would keep it from other requests.
#[post("/reading/<id>")]
async fn reading(id: &str, _read: Read<Audit>, counters: Counters) -> Result<(), Error> {
    add(&counters, id, 1).await.map(drop)
}

async fn released(leases: &Leases<Main>) {
    for _ in 0..20_000 {
        if leases.leases().await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the leases were not released in 20 s");
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
        "read through the transaction"
    );
    stale.record(Added { number: 5 })?;
    counters.commit(&mut stale).await?;
    // The handler gets the error, and may choose the response.
    let refused = counters.flush().await;
    assert!(matches!(
        refused,
        Err(aggregate::AggregateError::Conflict(_))
    ));
    drop(audit.begin().await?);
    Ok(Status::Conflict)
}

/// Flushes an event, and stages another one afterwards.
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

/// An aggregate and its repository, kept after the end of the request.
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

/// Leases `b`, then `a`, which sorts before it.
#[post("/backwards")]
async fn backwards(counters: Counters) -> Result<(), Error> {
    let _b = get(&counters, "b").await?;
    let _a = get(&counters, "a").await?;
    Ok(())
}

pub fn service(rocket: Rocket<Build>) -> Rocket<Build> {
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
