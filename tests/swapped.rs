//! Handlers that move connections about: what is told stays true, and nobody else is harmed.

use rocket::futures::StreamExt;
use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::db::Connection;
use rocket_tx::{Error, Read, Settlement, Tx, rocket_db_pools, with_backend};
use sqlx::{Executor, PgConnection, SqliteConnection};

use crate::support::stage::note;
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

fn postgres(connection: &mut Connection) -> &mut PgConnection {
    match connection {
        Connection::Postgres(session) => session,
        Connection::Sqlite(_) => unreachable!("only on Postgres"),
    }
}

fn sqlite(connection: &mut Connection) -> &mut SqliteConnection {
    match connection {
        Connection::Sqlite(session) => session,
        Connection::Postgres(_) => unreachable!("only on SQLite"),
    }
}

#[post("/read/<text>")]
async fn with_read(text: &str, mut read: Read<Main>, mut tx: Tx<Audit>) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    std::mem::swap(&mut *read, &mut *tx);
    Ok(Status::Created)
}

#[post("/plain/<text>")]
async fn with_plain(
    text: &str,
    mut plain: rocket_db_pools::Connection<Main>,
    mut tx: Tx<Main>,
) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    std::mem::swap(&mut *plain, &mut *tx);
    Ok(Status::Created)
}

#[post("/transactions/<text>")]
async fn with_each_other(
    text: &str,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    note(&mut main, text).await?;
    std::mem::swap(&mut *main, &mut *audit);
    Ok(Status::Created)
}

/// What is beneath the sessions.
#[post("/connections")]
async fn beneath(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Status {
    match (&mut *main, &mut *audit) {
        (Connection::Sqlite(main), Connection::Sqlite(audit)) => {
            std::mem::swap(&mut **main, &mut **audit);
        }
        (main, audit) => std::mem::swap(postgres(main), postgres(audit)),
    }
    Status::Created
}

#[post("/readers")]
async fn readers(mut main: Read<Main>, mut audit: Read<Audit>) -> Status {
    match (&mut *main, &mut *audit) {
        (Connection::Sqlite(_), _) => std::mem::swap(sqlite(&mut main), sqlite(&mut audit)),
        _ => std::mem::swap(postgres(&mut main), postgres(&mut audit)),
    }
    Status::Created
}

#[post("/main/<text>")]
async fn write(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    Ok(Status::Created)
}

#[get("/main")]
async fn read(mut read: Read<Main>) -> Result<String, Error> {
    let notes: Vec<String> = with_backend!(read, |db| {
        sqlx::query_scalar("SELECT text FROM notes ORDER BY text")
            .fetch_all(db)
            .await?
    });
    Ok(notes.join(","))
}

/// Leaves the session two answers behind, and the refusal of a statement as the next of them.
#[post("/behind/<text>")]
async fn behind(text: &str, mut tx: Tx<Main>) -> Status {
    let db = postgres(&mut tx);
    for _ in 0..2 {
        if let Ok(mut rows) = db.copy_out_raw("COPY (SELECT 1) TO STDOUT").await {
            rows.next().await;
        }
        for _ in 0..3 {
            let _whose_answer = db.execute("SELECT 1").await;
        }
    }
    let insert = sqlx::AssertSqlSafe(format!("INSERT INTO notes (text) VALUES ('{text}')"));
    let _whose_answer = db.execute(sqlx::raw_sql(insert)).await;
    let _whose_answer = db.execute(sqlx::raw_sql("SAVEPOINT a; SELECT 1/0")).await;
    let _whose_answer = db.execute(sqlx::raw_sql("ROLLBACK TO a")).await;
    Status::Created
}

async fn stage(backend: Backend) -> Stage {
    let one = [
        ("databases.main.max_connections", "1"),
        ("databases.audit.max_connections", "1"),
    ];
    Stage::with(backend, &one, |rocket| {
        rocket
            .mount(
                "/",
                routes![
                    with_read,
                    with_plain,
                    with_each_other,
                    beneath,
                    readers,
                    write,
                    read,
                    behind
                ],
            )
            .attach(Settlement::new())
    })
    .await
}

/// What is told of `what` is what is stored of `text`, a moment later too.
async fn is_told_truly(stage: &Stage, what: &str, text: &str) {
    let response = stage.send(what).await;
    let stored = stage.notes().await.contains(&text.to_owned());
    match (response.status, response.outcome()) {
        (201, Some("committed")) => assert!(stored, "{what}: {response:?}"),
        (_, Some("rolled-back")) => assert!(!stored, "{what}: {response:?}"),
        (500, Some("unknown" | "partial")) => {}
        told => panic!("{what}: {told:?}"),
    }
    innocents_are_served(stage).await;
    let later = stage.notes().await.contains(&text.to_owned());
    assert_eq!(later, stored, "{what}: {response:?}");
}

/// Later requests write to, and read from, the database that they name.
async fn innocents_are_served(stage: &Stage) {
    for number in 0..3 {
        let own = format!("own-{number}-{}", stage.notes().await.len());
        let response = stage.send(&format!("POST /main/{own}")).await;
        assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        let main = stage.databases.notes(In::Main).await;
        assert!(main.contains(&own), "{own} is not in main: {main:?}");
        let seen = stage.send("GET /main").await;
        assert_eq!(seen.body, main.join(","));
    }
}

async fn connections_that_are_exchanged_make_no_lie(backend: Backend) {
    let stage = stage(backend).await;
    for path in ["read", "plain", "transactions"] {
        is_told_truly(
            &stage,
            &format!("POST /{path}/of-{path}"),
            &format!("of-{path}"),
        )
        .await;
    }
    for path in ["connections", "readers"] {
        stage.send(&format!("POST /{path}")).await;
        innocents_are_served(&stage).await;
    }
    eventually("nothing is outstanding", async || {
        stage.outstanding().is_empty()
    })
    .await;
}

on_each_backend!(connections_that_are_exchanged_make_no_lie);

mod of_postgres {
    mod postgres {
        use super::super::*;

        #[rocket::async_test]
        async fn a_refusal_of_another_statement_is_none_of_commit() {
            let stage = stage(Backend::Postgres).await;
            is_told_truly(&stage, "POST /behind/two-behind", "two-behind").await;
        }
    }
}
