//! Statements that run late, and hooks that a handler replaces.

use std::time::Duration;

use rocket::http::Status;
use rocket::{Route, post};
use rocket_db_pools::Pool;
use rocket_tx::db::{RollbackError, SqlitePool, TransactionPool};
use rocket_tx::{Error, Tx};
use sqlx::{Executor, SqliteConnection};
use tokio::time::timeout;

use super::{sqlite, stage};
use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, In, Main, WRITES, dropped_after};

pub(super) fn routes() -> Vec<Route> {
    rocket::routes![late, late_in_both, hooked, hooked_and_leaked]
}

/// Keeps SQLite busy for a while.
const SLOW: &str = "\
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600000)
    SELECT max(i) FROM n";

/// Sends statements and abandons them before they have run.
async fn abandon(connection: &mut SqliteConnection, statements: &[&'static str]) {
    for statement in statements {
        let run = timeout(Duration::from_millis(20), connection.execute(*statement)).await;
        assert!(run.is_err(), "{statement} runs late");
    }
}

const LATE: [&str; 3] = [SLOW, "ROLLBACK", "INSERT INTO notes VALUES ('late')"];

#[post("/late/<status>")]
async fn late(status: u16, mut tx: Tx<Main>) -> Result<(Status, ()), Error> {
    note(&mut tx, "before").await?;
    abandon(sqlite(&mut tx), &LATE).await;
    Ok((Status::new(status), ()))
}

#[post("/late-in-both/<status>")]
async fn late_in_both(
    status: u16,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<(Status, ()), Error> {
    note(&mut main, "before").await?;
    note(&mut audit, "before").await?;
    abandon(sqlite(&mut main), &LATE).await;
    Ok((Status::new(status), ()))
}

#[rocket::async_test]
async fn late_statements_store_nothing() {
    let stage = stage().await;
    for path in ["late", "late-in-both"] {
        let response = stage.send(&format!("POST /{path}/201")).await;
        assert_eq!(
            response.summary(),
            (500, Some("rolled-back")),
            "{response:?}"
        );
        assert_eq!(response.kind(), "ended");
        assert_eq!(stage.notes().await, [""; 0], "{path}");
        let response = stage.send(&format!("POST /{path}/422")).await;
        assert_eq!(
            response.summary(),
            (422, Some("rolled-back")),
            "{response:?}"
        );
        assert_eq!(stage.notes().await, [""; 0], "{path}");
        stage.nothing_is_stuck().await;
    }
}

/// Replaces hooks of rocket_tx, and runs statements that the hooks would have refused.
#[post("/hooked/<hooks>/<how>/<status>")]
async fn hooked(
    hooks: &str,
    how: &str,
    status: u16,
    mut tx: Tx<Main>,
) -> Result<(Status, ()), Error> {
    note(&mut tx, "first").await?;
    let connection = sqlite(&mut tx);
    let mut handle = connection.lock_handle().await?;
    match hooks {
        "set" => {
            handle.set_commit_hook(|| true);
            handle.set_rollback_hook(|| ());
        }
        "removed" => {
            handle.remove_commit_hook();
            handle.remove_rollback_hook();
        }
        _ => handle.create_collation("rocket_tx_probe", |one, other| one.cmp(other))?,
    }
    drop(handle);
    let statements = match how {
        "commit" => "COMMIT",
        "commit-and-go-on" => "COMMIT; BEGIN",
        "rollback-and-go-on" => "ROLLBACK; BEGIN",
        _ => "SELECT 1",
    };
    let _swallowed = connection.execute(statements).await;
    let _swallowed = connection
        .execute("INSERT INTO notes VALUES ('second')")
        .await;
    Ok((Status::new(status), ()))
}

/// Without our hooks, rocket_tx cannot know whether the handler has committed or rolled back.
#[rocket::async_test]
async fn replaced_hooks_make_the_outcome_unknown() {
    let stage = stage().await;
    for hooks in ["set", "removed", "collation"] {
        for how in [
            "commit",
            "commit-and-go-on",
            "rollback-and-go-on",
            "nothing",
        ] {
            let path = format!("POST /hooked/{hooks}/{how}/201");
            let response = stage.send(&path).await;
            assert_eq!(
                response.summary(),
                (500, Some("unknown")),
                "{hooks}, {how}: {response:?}"
            );
            stage.databases.empty().await;
            // The next request has our hooks.
            let raw = "INSERT INTO notes VALUES ('raw'); COMMIT";
            let raw = super::send_sql(&stage, "POST /run/tx/201", raw).await;
            assert_eq!(raw.summary(), (500, Some("rolled-back")), "{hooks}, {how}");
            assert_eq!(stage.notes().await, [""; 0], "{hooks}, {how}");
            stage.nothing_is_stuck().await;
        }
    }
}

/// Commits without our hook, and leaks its guard.
#[post("/hooked-and-leaked")]
async fn hooked_and_leaked(mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, "first").await?;
    let connection = sqlite(&mut tx);
    connection.lock_handle().await?.remove_commit_hook();
    let _swallowed = connection.execute("COMMIT").await;
    rocket::tokio::spawn(async move {
        let _kept = tx;
        std::future::pending::<()>().await;
    });
    Ok(Status::Created)
}

#[rocket::async_test]
async fn a_leaked_guard_with_replaced_hooks_is_reported_as_unknown() {
    let stage = stage().await;
    let response = stage.send("POST /hooked-and-leaked").await;
    assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
    assert_eq!(stage.notes().await, ["first"]);
}

async fn pool(databases: &Databases) -> SqlitePool {
    let figment = rocket::figment::Figment::new()
        .merge(("url", databases.url(In::Main)))
        .merge(("max_connections", 1))
        .merge(("connect_timeout", 5));
    SqlitePool::init(&figment).await.unwrap()
}

/// The writer's connection is replaced when a transaction has changed it.
#[rocket::async_test]
async fn a_begin_may_be_dropped_while_the_connection_is_replaced() {
    let databases = Databases::with_tables(Backend::Sqlite).await;
    let pool = pool(&databases).await;
    let mut polls = 0;
    loop {
        let mut transaction = pool.open(WRITES).await.unwrap();
        let connection = transaction.connection();
        let setting = "PRAGMA recursive_triggers = 1";
        connection.execute(setting).await.unwrap();
        transaction.commit().await.unwrap();
        if dropped_after(polls, pool.open(WRITES)).await && polls > 20 {
            break;
        }
        polls += 1;
    }
    assert_eq!(databases.notes(In::Main).await, [""; 0]);
}

/// Without a request: a rollback after the handler's COMMIT does not claim to have undone it.
#[rocket::async_test]
async fn a_rollback_with_replaced_hooks_claims_nothing() {
    let databases = Databases::with_tables(Backend::Sqlite).await;
    let pool = pool(&databases).await;
    let mut transaction = pool.open(WRITES).await.unwrap();
    let connection = transaction.connection();
    let insert = "INSERT INTO notes VALUES ('stays')";
    connection.execute(insert).await.unwrap();
    let mut handle = connection.lock_handle().await.unwrap();
    handle.remove_commit_hook();
    drop(handle);
    connection.execute("COMMIT").await.unwrap();
    let claimed = transaction.rollback().await;
    assert!(
        matches!(claimed, Err(RollbackError::Ended { undone: false })),
        "{claimed:?}"
    );
    drop(transaction);
    assert_eq!(databases.notes(In::Main).await, ["stays"]);

    // The next transaction has our hooks, and its rollback is effective.
    let mut transaction = pool.open(WRITES).await.unwrap();
    let insert = "INSERT INTO notes VALUES ('goes'); COMMIT";
    let refused = transaction
        .connection()
        .execute(sqlx::raw_sql(insert))
        .await;
    assert!(refused.is_err());
    transaction.rollback().await.unwrap();
    assert_eq!(databases.notes(In::Main).await, ["stays"]);
}
