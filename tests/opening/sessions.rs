//! The settings of every connection that a handler checks out.

use std::time::Duration;

use rocket::{State, get, post, routes};
use rocket_db_pools::Connection;
use rocket_tx::{Error, Read, Settlement, Tx, db, with_backend};
use sqlx::{Connection as _, PgConnection};

use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, Databases, Main, Stage};

const SQLITE: &str = "SELECT journal_mode || ' foreign_keys=' || foreign_keys \
                      || ' synchronous=' || synchronous || ' busy_timeout=' || timeout \
                      || ' query_only=' || query_only \
                      FROM pragma_journal_mode, pragma_foreign_keys, pragma_synchronous, \
                      pragma_busy_timeout, pragma_query_only";

const POSTGRES: &str = "SELECT current_setting('application_name') \
                        || ' statement=' || current_setting('statement_timeout') \
                        || ' idle=' || current_setting('idle_in_transaction_session_timeout') \
                        || ' read_only=' || current_setting('transaction_read_only')";

async fn settings(connection: &mut db::UrlConnection) -> Result<String, Error> {
    let sql = match connection {
        db::UrlConnection::Sqlite(_) => SQLITE,
        db::UrlConnection::Postgres(_) => POSTGRES,
    };
    Ok(with_backend!(connection, |db| sqlx::query_scalar(sql)
        .fetch_one(db)
        .await?))
}

#[get("/writer")]
async fn writer(mut tx: Tx<Main>) -> Result<String, Error> {
    settings(&mut tx).await
}

#[get("/reader")]
async fn reader(mut read: Read<Main>) -> Result<String, Error> {
    settings(&mut read).await
}

#[post("/write/tx")]
async fn write_through_tx(mut tx: Tx<Main>) -> Result<(), Error> {
    Ok(note(&mut tx, "through Tx").await?)
}

#[post("/write/read")]
async fn write_through_read(mut read: Read<Main>) -> Result<(), Error> {
    Ok(note(&mut read, "through Read").await?)
}

#[post("/write/connection")]
async fn write_through_connection(mut connection: Connection<Main>) -> Result<(), Error> {
    Ok(note(&mut connection, "through Connection").await?)
}

#[post("/orphan")]
async fn orphan(mut tx: Tx<Main>) -> Result<(), Error> {
    Ok(run(&mut tx, "INSERT INTO pairs (id, partner) VALUES (1, 2)").await?)
}

#[post("/sleep")]
async fn sleep(mut tx: Tx<Main>, mut audit: Tx<Audit>) -> Result<(), Error> {
    note(&mut audit, "before a long statement").await?;
    note(&mut tx, "before a long statement").await?;
    Ok(run(&mut tx, "SELECT pg_sleep(60)").await?)
}

/// The URL of the test's database, for a separate connection.
struct Url(String);

/// Leaves the transaction idle until the server has ended the session.
#[post("/idle")]
async fn idle(mut tx: Tx<Main>, mut audit: Tx<Audit>, url: &State<Url>) -> Result<(), Error> {
    note(&mut tx, "idle").await?;
    note(&mut audit, "idle").await?;
    let mut outside = PgConnection::connect(&url.0).await?;
    for _ in 0..2_000 {
        let idle: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND state = 'idle in transaction'",
        )
        .fetch_one(&mut outside)
        .await?;
        if idle == 0 {
            return Ok(());
        }
        rocket::tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The session did not end. This error has another status than an ended session.
    Err(Error::NotFound)
}

async fn stage(backend: Backend, settings: &[(&str, &str)]) -> Stage {
    let databases = Databases::with_tables(backend).await;
    let url = Url(databases.main.clone());
    Stage::on(databases, settings, |rocket| {
        let routes = routes![
            writer,
            reader,
            write_through_tx,
            write_through_read,
            write_through_connection,
            orphan,
            sleep,
            idle
        ];
        rocket
            .attach(Settlement::new())
            .manage(url)
            .mount("/", routes)
    })
    .await
}

async fn a_reader_cannot_write(backend: Backend) {
    let stage = stage(backend, &[]).await;
    let refused = stage.send("POST /write/read").await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert!(stage.notes().await.is_empty());

    let written = stage.send("POST /write/tx").await;
    assert_eq!(written.summary(), (200, Some("committed")), "{written:?}");
    assert_eq!(stage.notes().await, ["through Tx"]);
    stage.nothing_is_stuck().await;
}

/// Foreign keys are enforced on both backends. This key is deferred, so COMMIT checks it.
async fn a_row_without_its_partner_is_refused(backend: Backend) {
    let stage = stage(backend, &[]).await;
    let refused = stage.send("POST /orphan").await;
    assert_eq!(refused.summary(), (409, Some("rolled-back")), "{refused:?}");
    stage.nothing_is_stuck().await;
}

on_each_backend!(a_reader_cannot_write, a_row_without_its_partner_is_refused,);

mod of_one_backend {
    mod sqlite {
        use super::super::*;

        #[rocket::async_test]
        async fn every_connection_has_the_configured_pragmas() {
            for (name, number) in [("off", 0), ("normal", 1), ("full", 2), ("extra", 3)] {
                let stage = stage(
                    Backend::Sqlite,
                    &[
                        ("databases.main.synchronous", name),
                        ("databases.main.busy_timeout", "\"1234ms\""),
                    ],
                )
                .await;
                // rocket_tx, not SQLite, syncs the commits of the writer, for several requests at
                // once. The writer's own `synchronous` is therefore at most NORMAL (1).
                let writers = number.min(1);
                let set = |number: i32| {
                    format!("wal foreign_keys=1 synchronous={number} busy_timeout=1234 query_only")
                };
                let (writer, reader) = (
                    stage.send("GET /writer").await,
                    stage.send("GET /reader").await,
                );
                assert_eq!(writer.body, format!("{}=0", set(writers)));
                assert_eq!(reader.body, format!("{}=1", set(number)));
            }
        }

        #[rocket::async_test]
        async fn the_default_is_wal_with_shared_syncs_and_five_seconds() {
            let stage = stage(Backend::Sqlite, &[]).await;
            let writer = stage.send("GET /writer").await;
            assert_eq!(
                writer.body,
                "wal foreign_keys=1 synchronous=1 busy_timeout=5000 query_only=0"
            );
        }

        /// A connection of rocket_db_pools' own guard must not write outside of the transaction.
        #[rocket::async_test]
        async fn a_connection_of_rocket_db_pools_is_a_reader() {
            let stage = stage(Backend::Sqlite, &[]).await;
            let refused = stage.send("POST /write/connection").await;
            assert_eq!(refused.status, 500, "{refused:?}");
            assert!(stage.notes().await.is_empty());
        }
    }

    mod postgres {
        use super::super::*;

        #[rocket::async_test]
        async fn every_session_has_the_configured_settings() {
            let stage = stage(
                Backend::Postgres,
                &[
                    ("databases.main.statement_timeout", "\"4321ms\""),
                    ("databases.main.idle_in_transaction_timeout", "7"),
                ],
            )
            .await;
            let set = "rocket_tx statement=4321ms idle=7s read_only";
            let (writer, reader) = (
                stage.send("GET /writer").await,
                stage.send("GET /reader").await,
            );
            assert_eq!(writer.body, format!("{set}=off"));
            assert_eq!(reader.body, format!("{set}=on"));
        }

        #[rocket::async_test]
        async fn by_default_statements_and_idle_transactions_are_bounded() {
            let stage = stage(Backend::Postgres, &[]).await;
            let writer = stage.send("GET /writer").await;
            assert_eq!(
                writer.body,
                "rocket_tx statement=30s idle=15s read_only=off"
            );
        }

        #[rocket::async_test]
        async fn an_application_name_in_the_url_stays() {
            let mut databases = Databases::with_tables(Backend::Postgres).await;
            databases.main.push_str("?application_name=todos");
            let stage = Stage::on(databases, &[], |rocket| {
                rocket
                    .attach(Settlement::new())
                    .mount("/", routes![writer, reader])
            })
            .await;
            for route in ["GET /writer", "GET /reader"] {
                let response = stage.send(route).await;
                assert!(response.body.starts_with("todos "), "{response:?}");
            }
        }

        #[rocket::async_test]
        async fn a_statement_past_its_bound_is_ended_and_everything_rolled_back() {
            let bound = ("databases.main.statement_timeout", "\"200ms\"");
            let stage = stage(Backend::Postgres, &[bound]).await;
            let ended = stage.send("POST /sleep").await;
            assert_eq!(ended.summary(), (503, Some("rolled-back")), "{ended:?}");
            assert!(stage.notes().await.is_empty());
            stage.nothing_is_stuck().await;
        }

        #[rocket::async_test]
        async fn a_transaction_that_idles_past_its_bound_is_ended_and_everything_rolled_back() {
            let bound = ("databases.main.idle_in_transaction_timeout", "\"200ms\"");
            let stage = stage(Backend::Postgres, &[bound]).await;
            let ended = stage.send("POST /idle").await;
            assert_eq!(ended.summary(), (503, Some("rolled-back")), "{ended:?}");
            assert!(stage.notes().await.is_empty());
            stage.nothing_is_stuck().await;
        }
    }
}
