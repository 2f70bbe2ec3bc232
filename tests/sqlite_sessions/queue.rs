//! A handler gives up very many statements, and the connection's own thread is still at the first.

use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use rocket::http::Status;
use rocket::tokio::time::timeout;
use rocket::{State, get, post, routes};
use rocket_tx::tx::ReadOnly;
use rocket_tx::{Read, Settlement, Tx};
use sqlx::{Connection, Executor, SqliteConnection};

use super::sqlite;
use crate::support::{Backend, Main, Stage};

/// The first statement ends when the test says so. Otherwise after a while, so that a test that is
/// itself stopped fails and does not hang.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    was_forced: OnceLock<()>,
}

impl Gate {
    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap();
        let limit = Duration::from_secs(20);
        let (_open, waited) = self
            .opened
            .wait_timeout_while(is_open, limit, |is_open| !*is_open)
            .unwrap();
        if waited.timed_out() {
            let _already = self.was_forced.set(());
        }
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// More statements than sqlx's queue holds as a rule, which is 50.
async fn give_up(connection: &mut SqliteConnection, gate: &Arc<Gate>) {
    let gate = Arc::clone(gate);
    let mut handle = connection.lock_handle().await.unwrap();
    handle
        .create_collation("gated", move |one, other| {
            gate.pass();
            one.cmp(other)
        })
        .unwrap();
    drop(handle);
    let limit = Duration::from_millis(1);
    let first = timeout(limit, connection.execute("SELECT 'a' = 'b' COLLATE gated")).await;
    assert!(first.is_err(), "it was to wait for the test");
    for _ in 0..100 {
        let _given_up = timeout(Duration::ZERO, connection.execute("SELECT 1")).await;
    }
}

#[post("/give-up/tx")]
async fn in_tx(mut tx: Tx<Main>, gate: &State<Arc<Gate>>) -> Status {
    give_up(sqlite(&mut tx), gate).await;
    Status::UnprocessableEntity
}

#[post("/give-up/read-only")]
async fn in_read_only(mut tx: Tx<Main, ReadOnly>, gate: &State<Arc<Gate>>) -> Status {
    give_up(sqlite(&mut tx), gate).await;
    Status::UnprocessableEntity
}

#[post("/give-up/read")]
async fn in_read(mut read: Read<Main>, gate: &State<Arc<Gate>>) -> Status {
    give_up(sqlite(&mut read), gate).await;
    Status::UnprocessableEntity
}

/// sqlx's own transaction rolls back when it is dropped.
#[post("/give-up/savepoint")]
async fn in_savepoint(mut tx: Tx<Main>, gate: &State<Arc<Gate>>) -> Status {
    let mut savepoint = sqlite(&mut tx).begin().await.unwrap();
    give_up(&mut savepoint, gate).await;
    Status::UnprocessableEntity
}

#[get("/innocent")]
fn innocent() -> &'static str {
    "answered"
}

async fn a_full_queue(path: &str) {
    let gate = Arc::new(Gate::default());
    let stage = Stage::with(Backend::Sqlite, &[("settle_timeout", "1")], |rocket| {
        rocket
            .manage(Arc::clone(&gate))
            .mount(
                "/",
                routes![
                    in_tx,
                    in_read_only,
                    in_read,
                    in_savepoint,
                    innocent,
                    super::write
                ],
            )
            .attach(Settlement::new())
    })
    .await;
    let response = stage.send(&format!("POST /give-up/{path}")).await;
    assert_ne!(response.outcome(), Some("committed"), "{response:?}");
    let innocent = stage.send("GET /innocent").await;
    assert_eq!(innocent.body, "answered");
    let was_stopped = gate.was_forced.get().is_some();
    gate.open();
    assert!(!was_stopped, "everybody waited for one connection's thread");
    let written = stage.send("POST /note/after").await;
    assert_eq!(written.summary(), (201, Some("committed")), "{written:?}");
    stage.nothing_is_stuck().await;
}

#[rocket::async_test]
async fn a_full_queue_of_the_writer_stops_nobody_else() {
    a_full_queue("tx").await;
}

#[rocket::async_test]
async fn a_full_queue_of_a_reading_transaction_stops_nobody_else() {
    a_full_queue("read-only").await;
}

#[rocket::async_test]
async fn a_full_queue_of_a_reader_stops_nobody_else() {
    a_full_queue("read").await;
}

#[rocket::async_test]
async fn a_full_queue_below_a_savepoint_stops_nobody_else() {
    a_full_queue("savepoint").await;
}
