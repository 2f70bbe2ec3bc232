//! What a request has from before the attempts, and what an attempt leaves to the next one.

use std::sync::atomic::{AtomicUsize, Ordering};

use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{BeginStep, BorrowedTransaction};
use rocket_tx::{Begin, Error, Outstanding, Settlement};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates};

use super::anew::File;
use crate::aggregates::{Added, Counter};
use crate::support::stage::note;
use crate::support::{Backend, Databases, In, Main, Stage};

/// Fails with a conflict in the first two attempts.
struct Unlucky(File, AtomicUsize);

#[rocket::async_trait]
impl BeginStep<Main> for Unlucky {
    async fn run(&self, mut transaction: BorrowedTransaction<'_, Main>) -> Result<(), Error> {
        let db: &mut UrlConnection = transaction.connection();
        match self.1.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => self.0.conflict(db).await,
            _ => Ok(()),
        }
    }
}

/// A step of the transaction, before the closure, meets the conflicts.
#[post("/step")]
async fn step(
    main: Begin<Main>,
    outstanding: &Outstanding,
    file: &State<File>,
) -> Result<Status, Error> {
    outstanding.on_begin(Unlucky(File::clone(file), AtomicUsize::new(0)))?;
    let work = main.retrying(async |mut tx| Ok(note(&mut tx, "after the step").await?));
    work.await?;
    Ok(Status::Created)
}

/// Stages an event before the attempts, and one in each attempt. The first attempts fail, one of
/// them after both events were written to its transaction.
#[post("/staged/<id>")]
async fn staged(
    id: &str,
    counters: Aggregates<Main, Counter>,
    main: Begin<Main>,
    file: &State<File>,
) -> Result<Status, Error> {
    let mut counter = Counter::fresh(id)?;
    counter.record(Added { number: 1 })?;
    counters.commit(&mut counter).await?;
    let attempts = AtomicUsize::new(0);
    let work = main.retrying(async |tx| {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst);
        drop(tx);
        let mut counter = counters.get(id).await?.ok_or(Error::NotFound)?;
        counter.record(Added { number: 2 })?;
        counters.commit(&mut counter).await?;
        if attempt == 0 {
            counters.flush().await?;
        }
        match attempt {
            0 | 1 => file.conflict(&mut *main.begin().await?).await,
            _ => Ok(()),
        }
    });
    work.await?;
    Ok(Status::Created)
}

async fn stage(backend: Backend) -> Stage {
    let databases = Databases::with_tables(backend).await;
    let file = File::of(&databases);
    Stage::on(databases, &[], |rocket| {
        rocket
            .manage(file)
            .attach(aggregate::init::<Main>())
            .attach(Settlement::new())
            .mount("/", routes![step, staged])
    })
    .await
}

async fn a_step_may_meet_the_conflict(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /step").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(stage.databases.notes(In::Main).await, ["after the step"]);
    stage.nothing_is_stuck().await;
}

async fn events_staged_before_are_stored_once(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /staged/a").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    let events = "SELECT CAST(sequence AS TEXT) FROM aggregate_events ORDER BY sequence";
    let events = stage.databases.texts(In::Main, events).await;
    assert_eq!(events, ["1", "2"]);
    stage.nothing_is_stuck().await;
}

on_each_backend!(
    a_step_may_meet_the_conflict,
    events_staged_before_are_stored_once,
);
