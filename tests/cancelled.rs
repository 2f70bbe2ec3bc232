//! A `begin()` that is dropped half-way: sqlx 0.9 forgets it, and the server does not (its issue
//! 4393).

use rocket::futures::FutureExt;
use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::db::Connection;
use rocket_tx::rocket_db_pools;
use rocket_tx::{Begin, Error, Read, Settlement, Tx, with_backend};
use sqlx::Connection as _;

use crate::support::stage::note;
use crate::support::{Backend, Main, Stage};

/// Polled once: the statement is on its way.
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

/// A statement that is a transaction of its own, unless one is open. SQLite lends a reader.
#[post("/alone/<text>")]
async fn alone(text: &str, mut plain: rocket_db_pools::Connection<Main>) -> Result<(), Error> {
    if let Connection::Postgres(_) = &*plain {
        note(&mut plain, text).await?;
    }
    Ok(())
}

/// In a transaction that stays open, SQLite would say the same each time.
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

async fn a_begin_that_is_dropped_half_way_concerns_nobody_else(backend: Backend) {
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
    for what in ["plain", "read", "guard", "tx"] {
        for round in 0..5 {
            let response = stage.send(&format!("POST /cancelled/{what}")).await;
            let mut stored = stage.notes().await;
            let before: &[&str] = match response.outcome() {
                Some("committed") if what == "tx" => &["before"],
                _ => &[],
            };
            assert_eq!(stored, before, "{what}: {response:?}");
            if backend == Backend::Postgres {
                let text = format!("then-{round}");
                let response = stage.send(&format!("POST /alone/{text}")).await;
                assert_eq!(response.status, 200, "{}", response.body);
                stored.push(text);
                assert_eq!(stage.notes().await, stored, "{what}");
            }
            let text = format!("{what}-{round}");
            let response = stage.send(&format!("POST /notes/{text}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
            stored.push(text);
            stored.sort();
            assert_eq!(stage.notes().await, stored, "{what}");
            let response = stage.send("GET /count").await;
            assert_eq!(response.body, stored.len().to_string(), "{what}");
            stage.databases.empty().await;
        }
        stage.nothing_is_stuck().await;
    }
}

on_each_backend!(a_begin_that_is_dropped_half_way_concerns_nobody_else);
