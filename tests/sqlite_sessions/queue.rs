//! A handler abandons very many statements while the connection's thread still runs the first.

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

/// Blocks the first statement until the test opens the gate. After 20 s the statement continues
/// anyway, so that a blocked test fails and does not hang.
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

/// Abandons more statements than sqlx's queue holds by default, which is 50.
async fn abandon(connection: &mut SqliteConnection, gate: &Arc<Gate>) {
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
    assert!(first.is_err(), "the first statement waits at the gate");
    for _ in 0..100 {
        let _abandoned = timeout(Duration::ZERO, connection.execute("SELECT 1")).await;
    }
}

#[post("/give-up/tx")]
async fn in_tx(mut tx: Tx<Main>, gate: &State<Arc<Gate>>) -> Status {
    abandon(sqlite(&mut tx), gate).await;
    Status::UnprocessableEntity
}

#[post("/give-up/read-only")]
async fn in_read_only(mut tx: Tx<Main, ReadOnly>, gate: &State<Arc<Gate>>) -> Status {
    abandon(sqlite(&mut tx), gate).await;
    Status::UnprocessableEntity
}

#[post("/give-up/read")]
async fn in_read(mut read: Read<Main>, gate: &State<Arc<Gate>>) -> Status {
    abandon(sqlite(&mut read), gate).await;
    Status::UnprocessableEntity
}

/// Abandons statements in a transaction of sqlx, which rolls back when it is dropped.
#[post("/give-up/savepoint")]
async fn in_savepoint(mut tx: Tx<Main>, gate: &State<Arc<Gate>>) -> Status {
    let mut savepoint = sqlite(&mut tx).begin().await.unwrap();
    abandon(&mut savepoint, gate).await;
    Status::UnprocessableEntity
}

#[get("/innocent")]
fn innocent() -> &'static str {
    "served"
}

async fn a_full_queue(path: &str) {
    let gate = Arc::new(Gate::default());
    // Shorter than the gate, and long enough for a COMMIT on a busy disk.
    let stage = Stage::with(Backend::Sqlite, &[("settle_timeout", "4")], |rocket| {
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
    assert_eq!(innocent.body, "served");
    let was_blocked = gate.was_forced.get().is_some();
    gate.open();
    assert!(
        !was_blocked,
        "other requests waited for the thread of one connection"
    );
    let written = stage.send("POST /note/after").await;
    assert_eq!(written.summary(), (201, Some("committed")), "{written:?}");
    stage.nothing_is_stuck().await;
}

#[rocket::async_test]
async fn a_full_queue_of_the_writer_blocks_no_other_request() {
    a_full_queue("tx").await;
}

#[rocket::async_test]
async fn a_full_queue_of_a_reading_transaction_blocks_no_other_request() {
    a_full_queue("read-only").await;
}

#[rocket::async_test]
async fn a_full_queue_of_a_reader_blocks_no_other_request() {
    a_full_queue("read").await;
}

#[rocket::async_test]
async fn a_full_queue_below_a_savepoint_blocks_no_other_request() {
    a_full_queue("savepoint").await;
}
