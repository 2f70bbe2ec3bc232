//! Postgres sessions that are killed, and COMMITs without a reply.

use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::Serializable;
use rocket_tx::{Error, Settlement, Tx};
use sqlx::Executor;

use crate::support::stage::{both, note};
use crate::support::{Audit, Backend, Break, Databases, In, Main, Proxy, Stage};

#[post("/main")]
async fn main(mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    Ok(Status::Created)
}

/// Causes a serialization failure: a conflict with another transaction that only COMMIT detects.
#[post("/skewed")]
async fn skewed(
    mut main: Tx<Main>,
    mut audit: Tx<Audit, Serializable>,
    databases: &State<String>,
) -> Result<Status, Error> {
    const SKEW: &str =
        "INSERT INTO notes SELECT 'skew ' || count(*) || pg_backend_pid() FROM notes";

    note(&mut main, "written").await?;
    let UrlConnection::Postgres(ours) = &mut *audit else {
        return Ok(Status::NotImplemented);
    };
    ours.execute("SELECT count(*) FROM notes").await?;
    let mut theirs = <sqlx::PgConnection as sqlx::Connection>::connect(databases).await?;
    theirs.execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
    theirs.execute(SKEW).await?;
    ours.execute(SKEW).await?;
    theirs.execute("COMMIT").await?;
    Ok(Status::Created)
}

/// Terminates the session of `database` before the response, as an administrator.
#[post("/killed/<database>")]
async fn killed(
    database: &str,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
    admin: &State<String>,
) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    kill(
        if database == "main" {
            &mut main
        } else {
            &mut audit
        },
        admin,
    )
    .await?;
    Ok(Status::Created)
}

#[post("/killed-alone")]
async fn killed_alone(mut main: Tx<Main>, admin: &State<String>) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    kill(&mut main, admin).await?;
    Ok(Status::Created)
}

async fn kill(connection: &mut UrlConnection, admin: &str) -> Result<(), Error> {
    let UrlConnection::Postgres(connection) = connection else {
        return Ok(());
    };
    let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut **connection)
        .await?;
    let mut admin = <sqlx::PgConnection as sqlx::Connection>::connect(admin).await?;
    let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1, 10000)")
        .bind(id)
        .fetch_one(&mut admin)
        .await?;
    assert!(ended);
    Ok(())
}

/// A stage that reaches the database `through` via a proxy.
async fn stage(through: In) -> (Stage, Proxy) {
    stage_with(through, "\"1s\"").await
}

async fn stage_with(through: In, settle_timeout: &str) -> (Stage, Proxy) {
    let mut databases = Databases::with_tables(Backend::Postgres).await;
    let proxy = databases.by_proxy(through).await;
    let admin = databases.url(In::Audit).to_owned();
    let settings = [
        ("settle_timeout", settle_timeout),
        ("atomic_commit", "\"off\""),
    ];
    let stage = Stage::on(databases, &settings, |rocket| {
        rocket
            .manage(admin)
            .mount("/", routes![main, both, skewed, killed, killed_alone])
            .attach(Settlement::new())
    })
    .await;
    (stage, proxy)
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn a_session_killed_before_prepare_is_a_503() {
        let (stage, _proxy) = stage(In::Main).await;
        for path in ["killed/main", "killed/audit", "killed-alone"] {
            for _ in 0..5 {
                let response = stage.send(&format!("POST /{path}")).await;
                assert_eq!(
                    response.summary(),
                    (503, Some("rolled-back")),
                    "{path}: {}",
                    response.body
                );
                assert_eq!(response.kind(), "connection-lost");
                assert!(response.header("retry-after").is_some());
                assert_eq!(stage.notes().await, [""; 0], "{path}");
                stage.nothing_is_stuck().await;
            }
        }
    }

    /// The library queries the server for the outcome of a COMMIT without a reply.
    #[rocket::async_test]
    async fn a_connection_cut_at_commit_is_reported_with_the_true_outcome() {
        for (through, path, refused) in [
            (In::Main, "main", (503, Some("rolled-back"))),
            (In::Main, "both", (503, Some("rolled-back"))),
            (In::Audit, "both", (500, Some("partial"))),
        ] {
            let (stage, proxy) = stage_with(through, "\"10s\"").await;
            for (kind_of_break, stored) in [(Break::Before, false), (Break::After, true)] {
                proxy.set("COMMIT", kind_of_break);
                let response = stage.send(&format!("POST /{path}")).await;
                let case = format!("{kind_of_break:?} through {through:?}: {}", response.body);
                let expected = if stored {
                    (201, Some("committed"))
                } else {
                    refused
                };
                assert_eq!(response.summary(), expected, "{case}");
                assert!(proxy.has_sprung(), "{case}");
                let notes = stage.databases.notes(through).await;
                assert_eq!(!notes.is_empty(), stored, "{case}");
                // The pool recovers without help.
                stage.nothing_is_stuck().await;
                stage.databases.empty().await;
            }
        }
    }

    /// `LOST_COMMITS` sets the number of rounds. A thousand rounds take a few minutes.
    #[rocket::async_test]
    async fn a_lost_commit_is_reported_truthfully() {
        let rounds = std::env::var("LOST_COMMITS").map_or(40, |rounds| rounds.parse().unwrap());
        let (stage, proxy) = stage_with(In::Main, "\"10s\"").await;
        let mut unknown = 0;
        for round in 0..rounds {
            let kind = [Break::Before, Break::After, Break::Stall][round % 3];
            // Few of them stall, because each stalled COMMIT takes until a timeout.
            let kind = if round % 20 == 2 || kind != Break::Stall {
                kind
            } else {
                Break::After
            };
            proxy.set("COMMIT", kind);
            let response = stage.send("POST /main").await;
            assert!(proxy.has_sprung());
            let stored = !stage.databases.notes(In::Main).await.is_empty();
            match response.summary() {
                (201, Some("committed")) => assert!(stored, "{kind:?}"),
                (503, Some("rolled-back")) => assert!(!stored, "{kind:?}"),
                (500, Some("unknown")) => unknown += 1,
                other => panic!("{other:?}: {}", response.body),
            }
            stage.databases.empty().await;
        }
        println!("{rounds} COMMITs were cut, {unknown} outcomes are unknown");
        assert!(unknown * 100 <= rounds);
    }

    #[rocket::async_test]
    async fn a_commit_without_a_timely_reply_is_ended_and_reported_truthfully() {
        let (stage, proxy) = stage_with(In::Main, "\"4s\"").await;
        proxy.set("COMMIT", Break::Stall);
        let response = stage.send("POST /both").await;
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{}",
            response.body
        );
        assert!(proxy.has_sprung());
        stage.nothing_is_stuck().await;
    }

    #[rocket::async_test]
    async fn a_prepare_without_a_timely_reply_is_a_503() {
        let (stage, proxy) = stage(In::Audit).await;
        proxy.set("SET CONSTRAINTS ALL IMMEDIATE", Break::Stall);
        let response = stage.send("POST /both").await;
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{}",
            response.body
        );
        assert_eq!(response.kind(), "settle-timeout");
        assert!(proxy.has_sprung());
        assert_eq!(stage.notes().await, [""; 0]);
        stage.nothing_is_stuck().await;
    }

    /// Preparing succeeds and COMMIT fails: Postgres may detect a serialization failure only then.
    #[rocket::async_test]
    async fn a_second_commit_refused_by_the_server_is_partial() {
        let (stage, _proxy) = stage(In::Main).await;
        let response = stage.send("POST /skewed").await;
        assert_eq!(
            response.summary(),
            (500, Some("partial")),
            "{}",
            response.body
        );
        assert_eq!(response.kind(), "partial");
        assert_eq!(stage.databases.notes(In::Main).await, ["written"]);
        let audit = stage.databases.notes(In::Audit).await;
        assert_eq!(
            audit.len(),
            1,
            "only the other transaction wrote: {audit:?}"
        );
        stage.nothing_is_stuck().await;
    }
}
