//! State that a request leaves on its connection.

use std::cmp::Ordering::Equal;
use std::time::Duration;

use rocket::futures::StreamExt;
use rocket::http::Status;
use rocket::{Route, post};
use rocket_tx::{Error, Read, Tx};
use sqlx::sqlite::LockedSqliteHandle;

use super::{send_sql, sqlite, stage};
use crate::support::{In, Main};

/// Each of these changes the behaviour of all later statements on the connection.
const LEFTOVERS: [&str; 24] = [
    "ATTACH ':memory:' AS other",
    "CREATE TEMP TABLE notes (text)",
    "CREATE TEMP VIEW pairs AS SELECT 1 AS id",
    "CREATE TEMP TRIGGER mine AFTER INSERT ON main.notes BEGIN DELETE FROM notes; END",
    "DROP TABLE temp.rocket_tx_child",
    "PRAGMA query_only = 1",
    "PRAGMA query_only = 0",
    "PRAGMA locking_mode = exclusive",
    "PRAGMA main.locking_mode = exclusive",
    "PRAGMA trusted_schema = 0",
    "PRAGMA max_page_count = 1",
    "PRAGMA ignore_check_constraints = 1",
    "PRAGMA recursive_triggers = 1",
    "PRAGMA reverse_unordered_selects = 1",
    "PRAGMA writable_schema = 1",
    "PRAGMA case_sensitive_like = 1",
    "PRAGMA busy_timeout = 1",
    "PRAGMA synchronous = 0",
    "PRAGMA count_changes = 1",
    "PRAGMA short_column_names = 0",
    "PRAGMA full_column_names = 1",
    "ROLLBACK; PRAGMA foreign_keys = 0; PRAGMA synchronous = 0; BEGIN",
    "ROLLBACK; PRAGMA foreign_keys = 0; BEGIN; ATTACH ':memory:' AS other",
    "BEGIN",
];

/// These affect only writes.
const LEFTOVERS_OF_THE_WRITER: [&str; 3] = [
    "PRAGMA cache_size = -100000",
    "PRAGMA cache_spill = 0",
    "PRAGMA cache_spill = 7",
];

pub(super) fn routes() -> Vec<Route> {
    rocket::routes![
        callbacks,
        callbacks_of_read,
        collation,
        collation_of_read,
        equality,
        equality_of_read,
        first_row
    ]
}

#[rocket::async_test]
async fn nothing_that_one_request_sets_is_seen_by_the_next() {
    let stage = stage().await;
    let states = async || {
        let tx = stage.send("GET /state/tx").await;
        let read = stage.send("GET /state/read").await;
        assert_eq!((tx.status, read.status), (200, 200), "{tx:?} {read:?}");
        (tx.body, read.body)
    };
    let unchanged = states().await;
    let of_all = LEFTOVERS
        .map(|sql| (sql, &["tx", "read", "connection"][..]))
        .into_iter();
    let of_the_writer = LEFTOVERS_OF_THE_WRITER.map(|sql| (sql, &["tx"][..]));
    for (sql, guards) in of_all.chain(of_the_writer) {
        for guard in guards {
            for status in [201, 422] {
                send_sql(&stage, &format!("POST /run/{guard}/{status}"), sql).await;
                assert_eq!(
                    states().await,
                    unchanged,
                    "{sql}, through {guard}, {status}"
                );
            }
        }
    }
    let response = stage.send("POST /note/after").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(stage.send("GET /notes").await.body, "after");
    stage.nothing_is_stuck().await;
}

/// A transaction that stayed open would show an old state of the file.
#[rocket::async_test]
async fn a_reader_that_was_left_in_a_transaction_shows_later_commits() {
    let stage = stage().await;
    for (guard, number) in [("read", 1), ("connection", 2)] {
        let path = format!("POST /run/{guard}/200");
        send_sql(&stage, &path, "BEGIN; SELECT count(*) FROM notes").await;
        let written = stage.send(&format!("POST /note/{number}")).await;
        assert_eq!(written.summary(), (201, Some("committed")));
        let seen = stage.send("GET /notes").await.body;
        assert!(seen.ends_with(&number.to_string()), "{guard}: {seen}");
    }
}

/// A reader stores nothing, even if the request makes it writable.
#[rocket::async_test]
async fn a_reader_stores_nothing() {
    let stage = stage().await;
    for guard in ["read", "connection"] {
        for sql in [
            "PRAGMA query_only = 0; INSERT INTO notes VALUES ('sneaked in')",
            "PRAGMA query_only = 0; BEGIN; INSERT INTO notes VALUES ('sneaked in'); COMMIT",
        ] {
            send_sql(&stage, &format!("POST /run/{guard}/201"), sql).await;
            assert_eq!(stage.notes().await, [""; 0], "{guard}: {sql}");
        }
    }
    stage.nothing_is_stuck().await;
}

/// Installs callbacks that would interrupt the statements of the next request.
#[post("/callbacks")]
async fn callbacks(mut tx: Tx<Main>) -> Status {
    let mut handle = sqlite(&mut tx).lock_handle().await.unwrap();
    handle.set_update_hook(|_| panic!("this belonged to another request"));
    handle.set_progress_handler(1, || false);
    Status::Ok
}

#[post("/callbacks-of-read")]
async fn callbacks_of_read(mut read: Read<Main>) -> Status {
    let mut handle = sqlite(&mut read).lock_handle().await.unwrap();
    handle.set_progress_handler(1, || false);
    Status::Ok
}

#[rocket::async_test]
async fn callbacks_end_with_their_request() {
    let stage = stage().await;
    for path in ["callbacks", "callbacks-of-read"] {
        stage.send(&format!("POST /{path}")).await;
        let response = stage.send(&format!("POST /note/after-{path}")).await;
        assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        let read = stage.send("GET /notes").await;
        assert_eq!(read.status, 200, "{path}: {read:?}");
    }
}

/// Without checkpoints the WAL grows with every later request.
#[rocket::async_test]
async fn automatic_checkpoints_are_restored() {
    let stage = stage().await;
    let log = stage.databases.file(In::Main).with_extension("db-wal");
    let write = "INSERT OR REPLACE INTO notes VALUES (hex(zeroblob(20000)))";
    let length_after = async |count| {
        for _ in 0..count {
            let response = send_sql(&stage, "POST /run/tx/201", write).await;
            assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        }
        std::fs::metadata(&log).unwrap().len()
    };
    let usual = length_after(50).await;
    let off = "PRAGMA wal_autocheckpoint = 0";
    send_sql(&stage, "POST /run/tx/201", off).await;
    let most = length_after(300).await;
    let later = length_after(100).await;
    assert_eq!(most, later, "it was {usual} before, and grows");
}

/// Replaces one of SQLite's collations, so that different texts are equal: all texts, or those that
/// differ only in case, in any language.
fn replace_collation(handle: &mut LockedSqliteHandle<'_>, name: &str, cases: bool) {
    let replaced = match cases {
        true => handle.create_collation(name, |one, other| {
            one.to_lowercase().cmp(&other.to_lowercase())
        }),
        false => handle.create_collation(name, |_, _| Equal),
    };
    replaced.unwrap();
}

#[post("/collation/<name>?<cases>")]
async fn collation(name: &str, cases: bool, mut tx: Tx<Main>) -> Status {
    let mut handle = sqlite(&mut tx).lock_handle().await.unwrap();
    replace_collation(&mut handle, name, cases);
    Status::Ok
}

#[post("/collation-of-read/<name>?<cases>")]
async fn collation_of_read(name: &str, cases: bool, mut read: Read<Main>) -> Status {
    let mut handle = sqlite(&mut read).lock_handle().await.unwrap();
    replace_collation(&mut handle, name, cases);
    Status::Ok
}

const EQUALITY: &str = "\
    SELECT ('a' = 'b' COLLATE BINARY) || ('a' = 'A' COLLATE BINARY)
        || ('a' = 'b' COLLATE NOCASE) || ('Ä' = 'ä' COLLATE NOCASE)
        || ('a' = 'b' COLLATE RTRIM) || ('a' = 'A' COLLATE RTRIM)";

#[post("/equality")]
async fn equality(mut tx: Tx<Main>) -> Result<String, Error> {
    let found = sqlx::query_scalar(EQUALITY).fetch_one(&mut *sqlite(&mut tx));
    Ok(found.await?)
}

#[post("/equality-of-read")]
async fn equality_of_read(mut read: Read<Main>) -> Result<String, Error> {
    let found = sqlx::query_scalar(EQUALITY).fetch_one(&mut *sqlite(&mut read));
    Ok(found.await?)
}

#[rocket::async_test]
async fn collations_end_with_their_request() {
    let stage = stage().await;
    for (path, guard) in [("collation", "tx"), ("collation-of-read", "read")] {
        let unchanged = stage.send(&format!("GET /state/{guard}")).await.body;
        stage.send(&format!("POST /{path}/of_a_request")).await;
        let found = stage.send(&format!("GET /state/{guard}")).await.body;
        assert_eq!(found, unchanged);
    }
    for of in ["", "-of-read"] {
        for name in ["BINARY", "NOCASE", "RTRIM"] {
            for cases in [true, false] {
                let path = format!("POST /collation{of}/{name}?cases={cases}");
                let set = stage.send(&path).await;
                assert_eq!(set.status, 200, "{set:?}");
                let found = stage.send(&format!("POST /equality{of}")).await;
                assert_eq!(found.body, "000000", "{path}: {found:?}");
            }
        }
    }
}

/// `BINARY` is the collation of columns for which none is named.
#[rocket::async_test]
async fn rows_are_distinguished_after_another_request_replaced_a_collation() {
    let stage = stage().await;
    stage.send("POST /note/alice").await;
    stage.send("POST /note/bob").await;
    stage.send("POST /collation/BINARY").await;
    let delete = "DELETE FROM notes WHERE +text = 'bob'";
    let response = send_sql(&stage, "POST /run/tx/201", delete).await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(stage.notes().await, ["alice"]);
}

/// Reads one of very many rows. The rest is never fetched.
#[post("/first-row/<guard>")]
async fn first_row(guard: &str, read: Option<Read<Main>>) -> Status {
    let Some(mut read) = read else {
        return Status::NotImplemented;
    };
    assert_eq!(guard, "read");
    let mut rows = sqlx::query(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000)
         SELECT i FROM n WHERE i = 1 OR i % 50000000 = 0",
    )
    .fetch(sqlite(&mut read));
    let first = rows.next().await;
    assert!(first.is_some_and(|row| row.is_ok()));
    Status::Ok
}

/// SQLite continues to compute the second row. Only that connection is busy meanwhile.
#[rocket::async_test]
async fn an_abandoned_query_delays_no_other_request() {
    let databases = crate::support::Databases::with_tables(crate::support::Backend::Sqlite).await;
    let settings = [("databases.main.max_connections", "2")];
    let stage = crate::support::Stage::on(databases, &settings, |rocket| {
        rocket
            .mount("/", rocket::routes![first_row, super::notes])
            .attach(rocket_tx::Settlement::new())
    })
    .await;
    assert_eq!(stage.send("POST /first-row/read").await.status, 200);
    for _ in 0..5 {
        let sent = std::time::Instant::now();
        assert_eq!(stage.send("GET /notes").await.status, 200);
        assert!(sent.elapsed() < Duration::from_secs(1));
    }
}
