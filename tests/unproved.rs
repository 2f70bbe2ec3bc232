//! Transactions that no ROLLBACK of ours can prove: their handler was given up in the middle, or a
//! task still has them.

use std::sync::Arc;
use std::time::Duration;

use rocket::http::Status;
use rocket::tokio::sync::Semaphore;
use rocket::tokio::task::spawn;
use rocket::{State, post, routes};
use rocket_tx::tx::{Mode, ReadWrite, RepeatableRead, Serializable, bounded};
use rocket_tx::{Begin, Error, Settlement, Tx};

use crate::support::stage::{note, run};
use crate::support::{Backend, Cluster, Databases, In, Main, Stage};

/// What a handler does before it is given up, or answers.
async fn work<M: Mode>(tx: &mut Tx<Main, M>, what: &str) -> Result<(), Error> {
    note(tx, "first").await?;
    match what {
        "nothing" => {}
        // SQLite refuses each of these.
        "commit" => drop(run(tx, "COMMIT").await),
        "commit-and-begin" => {
            drop(run(tx, "COMMIT").await);
            drop(run(tx, "BEGIN").await);
            drop(note(tx, "second").await);
        }
        "roll-back-and-commit-another" => {
            drop(run(tx, "ROLLBACK").await);
            // Postgres asks for the mode: what is begun beside a transaction of ours only reads.
            let begun = run(tx, "BEGIN READ WRITE").await.is_ok();
            drop(if begun {
                Ok(())
            } else {
                run(tx, "BEGIN").await
            });
            drop(note(tx, "second").await);
            drop(run(tx, "COMMIT").await);
        }
        _ => return Err(Error::NotFound),
    }
    Ok(())
}

async fn begun<M: Mode>(begin: Begin<Main, M>, what: &str) -> Result<Tx<Main, M>, Error> {
    let mut tx = begin.begin().await?;
    work(&mut tx, what).await?;
    Ok(tx)
}

async fn never() -> Status {
    std::future::pending().await
}

#[post("/given-up/default/<what>")]
async fn given_up(what: &str, begin: Begin<Main, ReadWrite>) -> Result<Status, Error> {
    let _held = begun(begin, what).await?;
    Ok(never().await)
}

#[post("/given-up/repeatable-read/<what>")]
async fn given_up_above(what: &str, begin: Begin<Main, RepeatableRead>) -> Result<Status, Error> {
    let _held = begun(begin, what).await?;
    Ok(never().await)
}

#[post("/given-up/serializable/<what>")]
async fn given_up_on_top(what: &str, begin: Begin<Main, Serializable>) -> Result<Status, Error> {
    let _held = begun(begin, what).await?;
    Ok(never().await)
}

#[post("/leaked/default/<what>")]
async fn leaked(
    what: &str,
    begin: Begin<Main, ReadWrite>,
    late: &State<Late>,
) -> Result<Status, Error> {
    leak(begun(begin, what).await?, late)
}

#[post("/leaked/repeatable-read/<what>")]
async fn leaked_above(
    what: &str,
    begin: Begin<Main, RepeatableRead>,
    late: &State<Late>,
) -> Result<Status, Error> {
    leak(begun(begin, what).await?, late)
}

#[post("/leaked/serializable/<what>")]
async fn leaked_on_top(
    what: &str,
    begin: Begin<Main, Serializable>,
    late: &State<Late>,
) -> Result<Status, Error> {
    leak(begun(begin, what).await?, late)
}

/// A task commits as soon as it may.
fn leak<M: Mode>(mut tx: Tx<Main, M>, late: &Late) -> Result<Status, Error> {
    let late = Arc::clone(late);
    spawn(async move {
        let _may = late.acquire().await;
        drop(run(&mut tx, "COMMIT").await);
    });
    Ok(Status::Created)
}

/// Has a permit when the answer has left.
type Late = Arc<Semaphore>;

const GIVEN_UP_AFTER: Duration = Duration::from_millis(300);

async fn stage(backend: Backend) -> (Stage, Late) {
    stage_on(Databases::with_tables(backend).await).await
}

async fn stage_on(databases: Databases) -> (Stage, Late) {
    let late = Late::new(Semaphore::new(0));
    let stage = Stage::on(databases, &[], |rocket| {
        let routes = routes![given_up, given_up_above, given_up_on_top];
        rocket
            .manage(Arc::clone(&late))
            .mount("/", bounded(routes, GIVEN_UP_AFTER))
            .mount("/", routes![leaked, leaked_above, leaked_on_top])
            .attach(Settlement::new())
    })
    .await;
    (stage, late)
}

const LEVELS: [&str; 3] = ["default", "repeatable-read", "serializable"];

async fn what_stands_is_rolled_back_before_the_answer(backend: Backend) {
    for (how, status) in [("given-up", 503), ("leaked", 500)] {
        for level in LEVELS {
            let path = format!("/{how}/{level}/nothing");
            let (stage, late) = stage(backend).await;
            let response = stage.send(&format!("POST {path}")).await;
            let told = (status, Some("rolled-back"));
            assert_eq!(response.summary(), told, "{path}: {}", response.body);
            late.add_permits(1);
            stage.nothing_is_stuck().await;
            assert_eq!(stage.notes().await, [""; 0], "{path}");
        }
    }
}

async fn what_its_handler_has_committed_is_not_told_as_rolled_back(backend: Backend) {
    let ends = ["commit", "commit-and-begin", "roll-back-and-commit-another"];
    for how in ["given-up", "leaked"] {
        for (level, ends) in [
            ("default", &ends[..]),
            // Above, nobody can tell from outside whether a transaction is the one that began.
            ("repeatable-read", &ends[..1]),
            ("serializable", &ends[..1]),
        ] {
            for end in ends {
                let path = format!("/{how}/{level}/{end}");
                let (stage, late) = stage(backend).await;
                let response = stage.send(&format!("POST {path}")).await;
                late.add_permits(1);
                stage.nothing_is_stuck().await;
                let stored = stage.notes().await;
                let (kept, outcome) = match (backend, level, *end) {
                    (Backend::Sqlite, ..) => (0, "rolled-back"),
                    // COMMIT is refused there; that nothing else was written is not known.
                    (_, "default", "commit" | "commit-and-begin") => (0, "unknown"),
                    _ => (1, "unknown"),
                };
                assert_eq!(stored.len(), kept, "{path}: {stored:?}");
                let (_, told) = response.summary();
                assert_eq!(told, Some(outcome), "{path}: {}", response.body);
            }
        }
    }
}

on_each_backend!(
    what_stands_is_rolled_back_before_the_answer,
    what_its_handler_has_committed_is_not_told_as_rolled_back,
);

mod postgres_only {
    use super::*;

    /// From then on the server looks like another one, by what a crash would change.
    #[rocket::async_test]
    async fn on_postgres_a_reset_of_statistics_keeps_no_session_alive() {
        let cluster = Cluster::start().await;
        let (stage, late) = stage_on(Databases::on_cluster(&cluster).await).await;
        stage.nothing_is_stuck().await;
        let reset = "SELECT pg_stat_reset_shared('archiver')";
        stage.databases.execute(In::Main, reset).await;
        let response = stage.send("POST /leaked/default/nothing").await;
        assert_eq!(
            response.summary(),
            (500, Some("rolled-back")),
            "{response:?}"
        );
        late.add_permits(1);
        let response = stage.send("POST /given-up/default/commit").await;
        assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
        stage.nothing_is_stuck().await;
        assert_eq!(stage.notes().await, [""; 0]);
    }
}
