//! Transactions whose state our ROLLBACK cannot prove, because their handler was abandoned or a
//! task still holds them.

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

/// Runs the statements of a handler, before the handler is abandoned or responds.
async fn work<M: Mode>(tx: &mut Tx<Main, M>, statements: &str) -> Result<(), Error> {
    note(tx, "first").await?;
    match statements {
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
            // Postgres needs the mode: a transaction that the handler begins itself is read-only by
            // default.
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

async fn begun<M: Mode>(begin: Begin<Main, M>, statements: &str) -> Result<Tx<Main, M>, Error> {
    let mut tx = begin.begin().await?;
    work(&mut tx, statements).await?;
    Ok(tx)
}

async fn never() -> Status {
    std::future::pending().await
}

#[post("/abandoned/default/<statements>")]
async fn abandoned(statements: &str, begin: Begin<Main, ReadWrite>) -> Result<Status, Error> {
    let _held = begun(begin, statements).await?;
    Ok(never().await)
}

#[post("/abandoned/repeatable-read/<statements>")]
async fn abandoned_repeatable_read(
    statements: &str,
    begin: Begin<Main, RepeatableRead>,
) -> Result<Status, Error> {
    let _held = begun(begin, statements).await?;
    Ok(never().await)
}

#[post("/abandoned/serializable/<statements>")]
async fn abandoned_serializable(
    statements: &str,
    begin: Begin<Main, Serializable>,
) -> Result<Status, Error> {
    let _held = begun(begin, statements).await?;
    Ok(never().await)
}

#[post("/leaked/default/<statements>")]
async fn leaked(
    statements: &str,
    begin: Begin<Main, ReadWrite>,
    late: &State<Late>,
) -> Result<Status, Error> {
    leak(begun(begin, statements).await?, late)
}

#[post("/leaked/repeatable-read/<statements>")]
async fn leaked_repeatable_read(
    statements: &str,
    begin: Begin<Main, RepeatableRead>,
    late: &State<Late>,
) -> Result<Status, Error> {
    leak(begun(begin, statements).await?, late)
}

#[post("/leaked/serializable/<statements>")]
async fn leaked_serializable(
    statements: &str,
    begin: Begin<Main, Serializable>,
    late: &State<Late>,
) -> Result<Status, Error> {
    leak(begun(begin, statements).await?, late)
}

/// Spawns a task that runs COMMIT once the test permits it.
fn leak<M: Mode>(mut tx: Tx<Main, M>, late: &Late) -> Result<Status, Error> {
    let late = Arc::clone(late);
    spawn(async move {
        let _may = late.acquire().await;
        drop(run(&mut tx, "COMMIT").await);
    });
    Ok(Status::Created)
}

/// Gets a permit after the response has left.
type Late = Arc<Semaphore>;

const HANDLER_TIMEOUT: Duration = Duration::from_millis(300);

async fn stage(backend: Backend) -> (Stage, Late) {
    stage_on(Databases::with_tables(backend).await).await
}

async fn stage_on(databases: Databases) -> (Stage, Late) {
    let late = Late::new(Semaphore::new(0));
    let stage = Stage::on(databases, &[], |rocket| {
        let routes = routes![abandoned, abandoned_repeatable_read, abandoned_serializable];
        rocket
            .manage(Arc::clone(&late))
            .mount("/", bounded(routes, HANDLER_TIMEOUT))
            .mount(
                "/",
                routes![leaked, leaked_repeatable_read, leaked_serializable],
            )
            .attach(Settlement::new())
    })
    .await;
    (stage, late)
}

const LEVELS: [&str; 3] = ["default", "repeatable-read", "serializable"];

async fn an_open_transaction_is_rolled_back_before_the_response(backend: Backend) {
    for (how, status) in [("abandoned", 503), ("leaked", 500)] {
        for level in LEVELS {
            let path = format!("/{how}/{level}/nothing");
            let (stage, late) = stage(backend).await;
            let response = stage.send(&format!("POST {path}")).await;
            let expected = (status, Some("rolled-back"));
            assert_eq!(response.summary(), expected, "{path}: {}", response.body);
            late.add_permits(1);
            stage.nothing_is_stuck().await;
            assert_eq!(stage.notes().await, [""; 0], "{path}");
        }
    }
}

async fn a_commit_by_the_handler_is_not_reported_as_rolled_back(backend: Backend) {
    let ends = ["commit", "commit-and-begin", "roll-back-and-commit-another"];
    for how in ["abandoned", "leaked"] {
        for (level, ends) in [
            ("default", &ends[..]),
            // At higher levels, rocket_tx cannot determine from outside the session whether a
            // transaction is the one that it began.
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
                    // Postgres refuses the COMMIT. Whether other rows were written is not known.
                    (_, "default", "commit" | "commit-and-begin") => (0, "unknown"),
                    _ => (1, "unknown"),
                };
                assert_eq!(stored.len(), kept, "{path}: {stored:?}");
                assert_eq!(
                    response.outcome(),
                    Some(outcome),
                    "{path}: {}",
                    response.body
                );
            }
        }
    }
}

on_each_backend!(
    an_open_transaction_is_rolled_back_before_the_response,
    a_commit_by_the_handler_is_not_reported_as_rolled_back,
);

mod postgres_only {
    use super::*;

    /// The reset changes a value that also changes in a crash, so the server seems to have
    /// restarted.
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
        let response = stage.send("POST /abandoned/default/commit").await;
        assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
        stage.nothing_is_stuck().await;
        assert_eq!(stage.notes().await, [""; 0]);
    }
}
