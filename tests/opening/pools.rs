//! Broken connections are replaced.

use std::sync::Arc;
use std::time::Duration;

use rocket::futures::future::join_all;
use rocket::tokio::sync::Barrier;
use rocket::tokio::time::sleep;
use rocket::{State, get, post, routes};
use rocket_tx::{Error, Read, Settlement, Tx, with_backend};

use crate::support::stage::{note, run};
use crate::support::{Backend, HttpResponse, In, Main, Stage, eventually};

/// The number of sessions that the tests open; a pool may have four.
const SESSIONS: usize = 3;

/// Requests wait here for each other, so that each holds a separate session.
struct Meeting(Arc<Barrier>);

#[post("/meet/tx")]
async fn meet_writing(_tx: Tx<Main>, meeting: &State<Meeting>) {
    meeting.0.wait().await;
}

#[get("/meet/read")]
async fn meet_reading(_read: Read<Main>, meeting: &State<Meeting>) {
    meeting.0.wait().await;
}

#[post("/write/<text>")]
async fn write(mut tx: Tx<Main>, text: &str) -> Result<(), Error> {
    Ok(note(&mut tx, text).await?)
}

#[get("/read")]
async fn read(mut read: Read<Main>) -> Result<String, Error> {
    let one: i32 = with_backend!(read, |db| sqlx::query_scalar("SELECT 1")
        .fetch_one(db)
        .await?);
    Ok(one.to_string())
}

/// Runs a statement whose error ends the whole transaction, not only the statement.
#[post("/ended/<swallowed>")]
async fn ended(mut tx: Tx<Main>, swallowed: bool) -> Result<(), Error> {
    note(&mut tx, "before").await?;
    let result = run(
        &mut tx,
        "INSERT OR ROLLBACK INTO notes (text) VALUES ('before')",
    )
    .await;
    match swallowed {
        true => Ok(note(&mut tx, "after").await?),
        false => Ok(result?),
    }
}

async fn stage(backend: Backend) -> Stage {
    Stage::new(backend, |rocket| {
        rocket
            .attach(Settlement::new())
            .manage(Meeting(Arc::new(Barrier::new(SESSIONS))))
            .mount("/", routes![meet_writing, meet_reading, write, read, ended])
    })
    .await
}

async fn at_once(stage: &Stage, request: &str) -> Vec<HttpResponse> {
    join_all((0..SESSIONS).map(|_| stage.send(request))).await
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn the_writer_works_after_transactions_that_sqlite_itself_ended() {
        let stage = stage(Backend::Sqlite).await;
        for round in 0..4 {
            for (swallowed, status) in [(false, 409), (true, 500)] {
                let ended = stage.send(&format!("POST /ended/{swallowed}")).await;
                assert_eq!(ended.summary(), (status, Some("rolled-back")), "{ended:?}");
                let written = stage
                    .send(&format!("POST /write/{round}-{swallowed}"))
                    .await;
                assert_eq!(written.summary(), (200, Some("committed")), "{written:?}");
            }
        }
        assert_eq!(stage.notes().await.len(), 8);
        stage.nothing_is_stuck().await;
    }
}

mod postgres {
    use super::*;

    /// Ends every session of the database except our own. Returns their number.
    async fn end_all_sessions(stage: &Stage) -> usize {
        const OTHERS: &str = "SELECT pid::text FROM pg_stat_activity \
                              WHERE datname = current_database() AND pid <> pg_backend_pid()";
        // CASE keeps the planner from ending a session before it has checked the conditions.
        const END: &str = "SELECT pid::text FROM pg_stat_activity \
                           WHERE CASE \
                               WHEN datname = current_database() AND pid <> pg_backend_pid() \
                               THEN pg_terminate_backend(pid) \
                           END";

        let ended = stage.databases.texts(In::Main, END).await.len();
        eventually("the sessions are gone", async || {
            stage.databases.texts(In::Main, OTHERS).await.is_empty()
        })
        .await;
        ended
    }

    #[rocket::async_test]
    async fn sessions_that_died_while_idle_are_replaced_without_a_failed_request() {
        let stage = stage(Backend::Postgres).await;
        for round in 0..3 {
            at_once(&stage, "POST /meet/tx").await;
            at_once(&stage, "GET /meet/read").await;
            assert!(end_all_sessions(&stage).await >= 2 * SESSIONS);

            let writes: Vec<String> = (0..SESSIONS)
                .map(|number| format!("POST /write/{round}-{number}"))
                .collect();
            for written in join_all(writes.iter().map(|write| stage.send(write))).await {
                assert_eq!(written.summary(), (200, Some("committed")), "{written:?}");
            }
            // A read cannot be repeated as BEGIN can. Therefore a session is pinged before a read,
            // but not if it was used within the last 50 ms.
            sleep(Duration::from_millis(60)).await;
            for response in at_once(&stage, "GET /read").await {
                assert_eq!(
                    (response.status, &*response.body),
                    (200, "1"),
                    "{response:?}"
                );
            }
        }
        assert_eq!(stage.notes().await.len(), 3 * SESSIONS);
        stage.nothing_is_stuck().await;
    }
}
