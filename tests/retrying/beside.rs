//! Code that runs beside the attempts, and attempts that the handler does not wait for.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rocket::futures::future::{join, pending};
use rocket::http::Status;
use rocket::tokio::sync::Notify;
use rocket::{Build, Rocket, State, post, routes};
use rocket_tx::{Begin, Error, Outstanding, Resource, Serializable, Settlement};

use super::anew::File;
use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, Main, Stage, dropped_after};

/// Nothing to be settled.
struct Nothing;

#[rocket::async_trait]
impl Resource for Nothing {
    fn name(&self) -> Cow<'_, str> {
        "nothing".into()
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Does `what` beside the attempts. The first of them fails after that.
#[post("/beside/<what>")]
async fn beside(
    what: &str,
    main: Begin<Main>,
    audit: Begin<Audit>,
    outstanding: &Outstanding,
    file: &State<File>,
) -> Result<Status, Error> {
    let (attempts, has_begun, is_done) = (AtomicUsize::new(0), Notify::new(), Notify::new());
    let work = main.retrying(async |mut tx| {
        note(&mut tx, "in main").await?;
        if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
            has_begun.notify_one();
            is_done.notified().await;
            file.conflict(&mut tx).await?;
        }
        Ok(())
    });
    let beside = async {
        has_begun.notified().await;
        let done = match what {
            "begin" => match audit.begin().await {
                Ok(mut tx) => note(&mut tx, "in audit").await.map_err(Error::from),
                Err(error) => Err(error),
            },
            "retrying" => {
                let work = audit.retrying(async |mut tx| Ok(note(&mut tx, "in audit").await?));
                work.await
            }
            "join" => outstanding.join(Nothing),
            "hook" => outstanding.after_commit(async {}),
            _ => outstanding.doom(Status::Gone, "beside the attempts"),
        };
        is_done.notify_one();
        done
    };
    let (work, beside) = join(work, beside).await;
    work?;
    beside?;
    Ok(Status::Created)
}

/// Responds while a task is still in the middle of an attempt.
#[post("/spawned")]
async fn spawned(main: Begin<Main>) -> Status {
    let is_half_done = Arc::new(Notify::new());
    let half_done = Arc::clone(&is_half_done);
    rocket::tokio::spawn(async move {
        let work = main.retrying(async |mut tx| {
            note(&mut tx, "half").await?;
            drop(tx);
            half_done.notify_one();
            pending::<Result<(), Error>>().await
        });
        work.await
    });
    is_half_done.notified().await;
    Status::Created
}

/// Drops the work after so many polls. It uses two databases.
#[post("/dropped/<polls>")]
async fn dropped(
    polls: usize,
    main: Begin<Main, Serializable>,
    audit: Begin<Audit>,
    outstanding: &Outstanding,
) -> Status {
    let work = main.retrying(async |mut tx| {
        note(&mut tx, "in main").await?;
        note(&mut *audit.begin().await?, "in audit").await?;
        outstanding.join(Nothing)
    });
    match dropped_after(polls, work).await {
        true => Status::Created,
        false => Status::Accepted,
    }
}

/// The limit is more than the clock can count.
#[post("/endless")]
async fn endless(main: Begin<Main>) -> Result<Status, Error> {
    let work = main.retrying_within(Duration::MAX, async |mut tx| {
        Ok(note(&mut tx, "endless").await?)
    });
    work.await?;
    Ok(Status::Created)
}

fn service(rocket: Rocket<Build>) -> Rocket<Build> {
    rocket
        .attach(Settlement::new())
        .mount("/", routes![beside, spawned, dropped, endless])
}

async fn stage(backend: Backend) -> Stage {
    let databases = Databases::with_tables(backend).await;
    let file = File::of(&databases);
    Stage::on(databases, &[], |rocket| service(rocket.manage(file))).await
}

/// A failed attempt would undo it too, and nobody would know.
async fn what_is_done_beside_the_attempts_is_refused(backend: Backend) {
    let stage = stage(backend).await;
    for what in ["begin", "retrying", "join", "hook"] {
        let response = stage.send(&format!("POST /beside/{what}")).await;
        assert_eq!(response.summary(), (500, Some("rolled-back")), "{what}");
        assert_eq!(response.kind(), "retrying", "{what}");
        assert!(stage.notes().await.is_empty(), "{what}");
    }
    stage.nothing_is_stuck().await;
}

async fn a_doom_beside_the_attempts_holds(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /beside/doom").await;
    assert_eq!(response.summary(), (410, Some("rolled-back")));
    assert!(stage.notes().await.is_empty());
    stage.nothing_is_stuck().await;
}

async fn attempts_that_nobody_waits_for_are_not_committed(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /spawned").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    assert_eq!(response.kind(), "doomed");
    assert!(stage.notes().await.is_empty());
    stage.nothing_is_stuck().await;
}

/// The future is dropped at each of its awaits.
async fn half_of_an_attempt_is_never_committed(backend: Backend) {
    let stage = stage(backend).await;
    for polls in 1.. {
        let response = stage.send(&format!("POST /dropped/{polls}")).await;
        let stored = stage.notes().await;
        if response.summary() == (201, Some("committed")) {
            assert_eq!(stored, ["in main", "in audit"]);
            break;
        }
        assert_eq!(response.summary(), (500, Some("rolled-back")), "{polls}");
        assert_eq!(response.kind(), "doomed", "{polls}");
        assert!(stored.is_empty(), "{polls}: {stored:?}");
    }
    stage.nothing_is_stuck().await;
}

async fn the_limit_may_be_any_duration(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /endless").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
}

on_each_backend!(
    what_is_done_beside_the_attempts_is_refused,
    a_doom_beside_the_attempts_holds,
    attempts_that_nobody_waits_for_are_not_committed,
    half_of_an_attempt_is_never_committed,
    the_limit_may_be_any_duration,
);
