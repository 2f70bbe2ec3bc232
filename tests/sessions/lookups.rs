//! A session on which only statements of a library have run is used again without a check.

use rocket::{State, post, routes};
use rocket_tx::db::{Access, Session, TransactionPool, WaitPolicy};

use super::*;
use crate::support::lookup::Library;

/// Returns the settings of the session that the tests change, in one row, and changes them.
async fn exchange(connection: &mut UrlConnection) -> Result<String, Error> {
    let changes = "SELECT current_setting('work_mem'), set_config('work_mem', '77MB', false)";
    let row = sqlx::query(changes).fetch_one(postgres(connection)).await?;
    Ok(row.try_get(0)?)
}

#[post("/lookup/<ending>")]
async fn lookup(ending: &str, mut library: Library) -> Result<String, Error> {
    let before = exchange(library.0.connection()).await?;
    if ending == "finished" {
        library.0.finish();
    }
    Ok(before)
}

/// Uses a session of a library outside of the request's own.
#[post("/session/<ending>")]
async fn session(ending: &str, main: &State<Main>) -> Result<String, Error> {
    let mut session = main.session(Access::ReadOnly, WaitPolicy::QUEUE).await?;
    if ending.ends_with("-early") {
        session.mark_unchanged();
    }
    let before = match ending {
        // The session is the enum that `with_backend!` takes.
        "direct-early" => exchange(&mut session).await?,
        _ => exchange(session.connection()).await?,
    };
    if ending == "marked" {
        session.mark_unchanged();
    }
    Ok(before)
}

#[rocket::async_test]
async fn only_a_session_that_was_not_used_since_its_mark_is_not_checked() {
    let settings = [("databases.main.max_connections", "1")];
    let stage = Stage::with(Backend::Postgres, &settings, |rocket| {
        let all = routes![lookup, session, echo, plain_echo];
        rocket.mount("/", all).attach(Settlement::new())
    })
    .await;
    let before = async |line| stage.send(line).await.body;
    let initial = before("POST /lookup/dropped").await;
    assert_ne!(initial, "77MB");
    // The library does not say that it has left the session unchanged, so the session is checked.
    assert_eq!(before("POST /lookup/dropped").await, initial);
    assert_eq!(before("POST /session/marked-early").await, initial);
    assert_eq!(before("POST /session/direct-early").await, initial);
    assert_eq!(before("POST /session/unmarked").await, initial);
    assert_eq!(before("POST /session/marked").await, initial);
    // The change is seen, so there was no check.
    assert_eq!(before("POST /lookup/finished").await, "77MB");
    assert_eq!(before("POST /session/dropped").await, "77MB");
    assert_eq!(before("POST /session/marked").await, initial);
    each_request_gets_its_own_reply(&stage).await;
    stage.nothing_is_stuck().await;
}
