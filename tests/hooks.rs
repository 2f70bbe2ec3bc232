//! Hooks: work that runs after the commit, or after the rollback.

use std::sync::Arc;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::{Error, Outstanding, Settlement, Tx};

use crate::support::stage::note;
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

/// The entries that the hooks have written, in the order in which they ran.
type Log = Arc<Mutex<Vec<String>>>;

async fn write(log: Log, entry: &str) {
    log.lock().push(entry.to_owned());
}

#[post("/hooks/<code>")]
async fn hooks(
    code: u16,
    outstanding: &Outstanding,
    log: &State<Log>,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<(Status, ()), Error> {
    note(&mut main, "written").await?;
    outstanding.after_commit(write(Arc::clone(log), "first"))?;
    outstanding.after_commit(async {
        if true {
            panic!("in a hook");
        }
    })?;
    outstanding.after_rollback(write(Arc::clone(log), "rolled back"))?;
    outstanding.after_commit(async { Err::<(), _>("on purpose") })?;
    note(&mut audit, "written").await?;
    let last = Arc::clone(log);
    outstanding.after_commit(async move {
        rocket::tokio::task::yield_now().await;
        write(last, "last").await;
    })?;
    Ok((Status::new(code), ()))
}

/// Adds hooks to a request without anything outstanding.
#[post("/hooks-alone/<code>")]
fn alone(code: u16, outstanding: &Outstanding, log: &State<Log>) -> Result<(Status, ()), Error> {
    outstanding.after_commit(write(Arc::clone(log), "committed"))?;
    outstanding.after_rollback(write(Arc::clone(log), "rolled back"))?;
    Ok((Status::new(code), ()))
}

async fn stage(backend: Backend) -> (Stage, Log) {
    let log = Log::default();
    let managed = Arc::clone(&log);
    let stage = Stage::new(backend, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![hooks, alone])
            .attach(Settlement::new())
    })
    .await;
    (stage, log)
}

/// Waits for the entry `last`. Then removes all entries and returns them.
async fn take(log: &Log, last: &str) -> Vec<String> {
    eventually(last, async || log.lock().iter().any(|entry| entry == last)).await;
    std::mem::take(&mut *log.lock())
}

async fn hooks_run_once_in_order_after_the_commit(backend: Backend) {
    let (stage, log) = stage(backend).await;
    for round in 1..=3 {
        let response = stage.send("POST /hooks/201").await;
        assert_eq!(response.summary(), (201, Some("committed")), "{round}");
        assert_eq!(take(&log, "last").await, ["first", "last"], "{round}");
        stage.databases.empty().await;
    }
    // A hook that panics or fails does not stop the service. Shutdown waits for all hooks.
    stage.send("POST /hooks/201").await;
    let databases = stage.close().await;
    assert_eq!(*log.lock(), ["first", "last"]);
    assert_eq!(databases.notes(In::Main).await, ["written"]);
}

async fn only_rollback_hooks_run_after_a_rollback(backend: Backend) {
    let (stage, log) = stage(backend).await;
    for code in [404, 500] {
        let response = stage.send(&format!("POST /hooks/{code}")).await;
        assert_eq!(response.summary(), (code, Some("rolled-back")));
    }
    stage.close().await;
    assert_eq!(*log.lock(), ["rolled back", "rolled back"]);
}

async fn hooks_run_without_a_transaction_too(backend: Backend) {
    let (stage, log) = stage(backend).await;
    stage.send("POST /hooks-alone/200").await;
    assert_eq!(take(&log, "committed").await, ["committed"]);
    stage.send("POST /hooks-alone/404").await;
    assert_eq!(take(&log, "rolled back").await, ["rolled back"]);
}

on_each_backend!(
    hooks_run_once_in_order_after_the_commit,
    only_rollback_hooks_run_after_a_rollback,
    hooks_run_without_a_transaction_too,
);
