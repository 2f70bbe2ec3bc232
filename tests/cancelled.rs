//! The future of a `begin()` is dropped half-way. sqlx 0.9 then does not know of the transaction,
//! but the server has begun it (sqlx issue 4393).

use rocket::futures::FutureExt;
use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::rocket_db_pools;
use rocket_tx::{Begin, Error, Read, Settlement, Tx, with_backend};
use sqlx::Connection as _;

use crate::support::stage::note;
use crate::support::{Backend, Main, Stage};

/// Polls a `begin()` once, so that the statement is sent, and drops it.
macro_rules! cancel_begin {
    ($connection:expr) => {
        with_backend!($connection, |db| drop(db.begin().now_or_never()))
    };
}

#[post("/cancelled/plain")]
async fn plain(mut plain: rocket_db_pools::Connection<Main>) {
    cancel_begin!(plain);
}

#[post("/cancelled/read")]
async fn read(mut read: Read<Main>) {
    cancel_begin!(read);
}

#[post("/cancelled/guard")]
async fn guard(begin: Begin<Main>) {
    drop(begin.begin().now_or_never());
}

/// A savepoint within the request's transaction.
#[post("/cancelled/tx")]
async fn tx(mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, "before").await?;
    cancel_begin!(tx);
    Ok(Status::Created)
}

/// Runs a statement outside any transaction of the library. It commits at once unless a transaction
/// was left open. On SQLite it is skipped, because this connection only reads.
#[post("/alone/<text>")]
async fn alone(text: &str, mut plain: rocket_db_pools::Connection<Main>) -> Result<(), Error> {
    if let UrlConnection::Postgres(_) = &*plain {
        note(&mut plain, text).await?;
    }
    Ok(())
}

/// Counts the notes. If a transaction were left open on SQLite, the count would never change.
#[get("/count")]
async fn count(mut read: Read<Main>) -> Result<String, Error> {
    const COUNT: &str = "SELECT count(*) FROM notes";

    let count: i64 = with_backend!(read, |db| sqlx::query_scalar(COUNT).fetch_one(db).await?);
    Ok(count.to_string())
}

#[post("/notes/<text>")]
async fn write(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    Ok(Status::Created)
}

async fn a_begin_dropped_half_way_does_not_affect_later_requests(backend: Backend) {
    let one = [
        ("databases.main.max_connections", "1"),
        ("databases.audit.max_connections", "1"),
    ];
    let stage = Stage::with(backend, &one, |rocket| {
        rocket
            .mount("/", routes![plain, read, guard, tx, alone, count, write])
            .attach(Settlement::new())
    })
    .await;
    for route in ["plain", "read", "guard", "tx"] {
        for round in 0..5 {
            let response = stage.send(&format!("POST /cancelled/{route}")).await;
            let mut stored = stage.notes().await;
            let before: &[&str] = match response.outcome() {
                Some("committed") if route == "tx" => &["before"],
                _ => &[],
            };
            assert_eq!(stored, before, "{route}: {response:?}");
            if backend == Backend::Postgres {
                let text = format!("then-{round}");
                let response = stage.send(&format!("POST /alone/{text}")).await;
                assert_eq!(response.status, 200, "{}", response.body);
                stored.push(text);
                assert_eq!(stage.notes().await, stored, "{route}");
            }
            let text = format!("{route}-{round}");
            let response = stage.send(&format!("POST /notes/{text}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
            stored.push(text);
            stored.sort();
            assert_eq!(stage.notes().await, stored, "{route}");
            let response = stage.send("GET /count").await;
            assert_eq!(response.body, stored.len().to_string(), "{route}");
            stage.databases.empty().await;
        }
        stage.nothing_is_stuck().await;
    }
}

on_each_backend!(a_begin_dropped_half_way_does_not_affect_later_requests);
