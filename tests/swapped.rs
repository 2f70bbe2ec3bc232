//! Handlers that swap connections. The reported outcome is true, and other requests are not
//! affected.

use rocket::futures::StreamExt;
use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::{Error, Read, Settlement, Tx, rocket_db_pools, with_backend};
use sqlx::{Executor, PgConnection, SqliteConnection};

use crate::support::stage::note;
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

fn postgres(connection: &mut UrlConnection) -> &mut PgConnection {
    match connection {
        UrlConnection::Postgres(session) => session,
        UrlConnection::Sqlite(_) => unreachable!("only on Postgres"),
    }
}

fn sqlite(connection: &mut UrlConnection) -> &mut SqliteConnection {
    match connection {
        UrlConnection::Sqlite(session) => session,
        UrlConnection::Postgres(_) => unreachable!("only on SQLite"),
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

/// Swaps the driver's connections inside the sessions.
#[post("/connections")]
async fn beneath(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Status {
    match (&mut *main, &mut *audit) {
        (UrlConnection::Sqlite(main), UrlConnection::Sqlite(audit)) => {
            std::mem::swap(&mut **main, &mut **audit);
        }
        (main, audit) => std::mem::swap(postgres(main), postgres(audit)),
    }
    Status::Created
}

#[post("/readers")]
async fn readers(mut main: Read<Main>, mut audit: Read<Audit>) -> Status {
    match (&mut *main, &mut *audit) {
        (UrlConnection::Sqlite(_), _) => std::mem::swap(sqlite(&mut main), sqlite(&mut audit)),
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

/// Leaves two unread replies in the session, so that each later statement reads the reply to an
/// older one. The next reply to be read is an error.
#[post("/unread/<text>")]
async fn unread(text: &str, mut tx: Tx<Main>) -> Status {
    let db = postgres(&mut tx);
    for _ in 0..2 {
        if let Ok(mut rows) = db.copy_out_raw("COPY (SELECT 1) TO STDOUT").await {
            rows.next().await;
        }
        for _ in 0..3 {
            let _any_reply = db.execute("SELECT 1").await;
        }
    }
    let insert = sqlx::AssertSqlSafe(format!("INSERT INTO notes (text) VALUES ('{text}')"));
    let _any_reply = db.execute(sqlx::raw_sql(insert)).await;
    let _any_reply = db.execute(sqlx::raw_sql("SAVEPOINT a; SELECT 1/0")).await;
    let _any_reply = db.execute(sqlx::raw_sql("ROLLBACK TO a")).await;
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
                    unread
                ],
            )
            .attach(Settlement::new())
    })
    .await
}

/// Checks that the outcome of `request` matches whether `text` is stored, also a moment later.
async fn has_true_outcome(stage: &Stage, request: &str, text: &str) {
    let response = stage.send(request).await;
    let stored = stage.notes().await.contains(&text.to_owned());
    match (response.status, response.outcome()) {
        (201, Some("committed")) => assert!(stored, "{request}: {response:?}"),
        (_, Some("rolled-back")) => assert!(!stored, "{request}: {response:?}"),
        (500, Some("unknown" | "partial")) => {}
        other => panic!("{request}: {other:?}"),
    }
    innocents_are_served(stage).await;
    let later = stage.notes().await.contains(&text.to_owned());
    assert_eq!(later, stored, "{request}: {response:?}");
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

async fn swapped_connections_never_cause_a_false_outcome(backend: Backend) {
    let stage = stage(backend).await;
    for path in ["read", "plain", "transactions"] {
        has_true_outcome(
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

on_each_backend!(swapped_connections_never_cause_a_false_outcome);

mod of_postgres {
    mod postgres {
        use super::super::*;

        #[rocket::async_test]
        async fn an_error_of_another_statement_is_not_taken_for_a_refused_commit() {
            let stage = stage(Backend::Postgres).await;
            has_true_outcome(&stage, "POST /unread/two-unread", "two-unread").await;
        }
    }
}
