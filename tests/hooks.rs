//! Work for after the commit, and for after the rollback.

use std::sync::Arc;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::{Error, Outstanding, Settlement, Tx};

use crate::support::stage::note;
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

/// What the hooks have said, in the order in which they ran.
type Said = Arc<Mutex<Vec<String>>>;

async fn say(said: Said, what: &str) {
    said.lock().push(what.to_owned());
}

#[post("/hooks/<code>")]
async fn hooks(
    code: u16,
    outstanding: &Outstanding,
    said: &State<Said>,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<(Status, ()), Error> {
    note(&mut main, "written").await?;
    outstanding.after_commit(say(Arc::clone(said), "first"))?;
    outstanding.after_commit(async {
        if true {
            panic!("in a hook");
        }
    })?;
    outstanding.after_rollback(say(Arc::clone(said), "rolled back"))?;
    outstanding.after_commit(async { Err::<(), _>("as told") })?;
    note(&mut audit, "written").await?;
    let last = Arc::clone(said);
    outstanding.after_commit(async move {
        rocket::tokio::task::yield_now().await;
        say(last, "last").await;
    })?;
    Ok((Status::new(code), ()))
}

/// Hooks without anything outstanding belong to a request all the same.
#[post("/hooks-alone/<code>")]
fn alone(code: u16, outstanding: &Outstanding, said: &State<Said>) -> Result<(Status, ()), Error> {
    outstanding.after_commit(say(Arc::clone(said), "committed"))?;
    outstanding.after_rollback(say(Arc::clone(said), "rolled back"))?;
    Ok((Status::new(code), ()))
}

async fn stage(backend: Backend) -> (Stage, Said) {
    let said = Said::default();
    let managed = Arc::clone(&said);
    let stage = Stage::new(backend, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![hooks, alone])
            .attach(Settlement::new())
    })
    .await;
    (stage, said)
}

/// Waits until `last` was said, and returns everything.
async fn heard(said: &Said, last: &str) -> Vec<String> {
    eventually(last, async || said.lock().iter().any(|what| what == last)).await;
    std::mem::take(&mut *said.lock())
}

async fn hooks_run_once_in_order_after_the_commit(backend: Backend) {
    let (stage, said) = stage(backend).await;
    for round in 1..=3 {
        let response = stage.send("POST /hooks/201").await;
        assert_eq!(response.summary(), (201, Some("committed")), "{round}");
        assert_eq!(heard(&said, "last").await, ["first", "last"], "{round}");
        stage.databases.empty().await;
    }
    // The service goes on after a hook that panicked and one that failed; shutdown waits for all.
    stage.send("POST /hooks/201").await;
    let databases = stage.close().await;
    assert_eq!(*said.lock(), ["first", "last"]);
    assert_eq!(databases.notes(In::Main).await, ["written"]);
}

async fn only_rollback_hooks_run_after_a_rollback(backend: Backend) {
    let (stage, said) = stage(backend).await;
    for code in [404, 500] {
        let response = stage.send(&format!("POST /hooks/{code}")).await;
        assert_eq!(response.summary(), (code, Some("rolled-back")));
    }
    stage.close().await;
    assert_eq!(*said.lock(), ["rolled back", "rolled back"]);
}

async fn hooks_run_without_a_transaction_too(backend: Backend) {
    let (stage, said) = stage(backend).await;
    stage.send("POST /hooks-alone/200").await;
    assert_eq!(heard(&said, "committed").await, ["committed"]);
    stage.send("POST /hooks-alone/404").await;
    assert_eq!(heard(&said, "rolled back").await, ["rolled back"]);
}

on_each_backend!(
    hooks_run_once_in_order_after_the_commit,
    only_rollback_hooks_run_after_a_rollback,
    hooks_run_without_a_transaction_too,
);
