//! A handler on Postgres ends the transaction with its own statements. The outcome must be true,
//! even if the session is lost.

use std::sync::Arc;
use std::time::Duration;

use rocket::http::Status;
use rocket::tokio::sync::Semaphore;
use rocket::tokio::task::spawn;
use rocket::{post, routes};
use rocket_db_pools::Connection as Plain;
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{Mode, ReadOnly, ReadWrite, RepeatableRead, Serializable, bounded};
use rocket_tx::{Begin, Error, Settlement};
use sqlx::{Executor, PgConnection};

use crate::support::{self, Backend, Cluster, Databases, HttpResponse, In, Main, PgBouncer, Stage};

fn postgres(connection: &mut UrlConnection) -> &mut PgConnection {
    match connection {
        UrlConnection::Postgres(session) => session,
        UrlConnection::Sqlite(_) => unreachable!("these tests run on Postgres only"),
    }
}

/// Separates two statements in the body of a request.
const NEXT: &str = ";;";

/// Runs all statements, even if some fail. Returns their errors.
async fn run(db: &mut PgConnection, script: &str) -> String {
    let mut errors = String::new();
    for sql in script.split(NEXT) {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
        if let Err(error) = db.execute(sql).await {
            errors.push_str(&error.to_string());
        }
    }
    errors
}

/// Has a permit for the task with the leaked guard once the response has arrived.
static RESPONSE_ARRIVED: Semaphore = Semaphore::const_new(0);

/// Begins, runs the statements, and continues as `then` demands: it returns a status, never returns
/// (so that the handler times out), or leaks the guard to a task.
async fn act<M: Mode>(
    begin: Begin<Main, M>,
    then: &str,
    sql: String,
) -> Result<(Status, String), Error> {
    let mut tx = begin.begin().await?;
    if then == "leaked" {
        let have_run = Arc::new(Semaphore::new(0));
        let done = Arc::clone(&have_run);
        spawn(async move {
            // The last statement may not return before its session has ended.
            let (all, last) = sql.rsplit_once(NEXT).unwrap_or(("SELECT 1", &sql));
            run(postgres(&mut tx), all).await;
            done.add_permits(1);
            run(postgres(&mut tx), last).await;
            RESPONSE_ARRIVED.acquire().await.unwrap().forget();
        });
        let _have_run = have_run.acquire().await;
        return Ok((Status::Created, String::new()));
    }
    let errors = run(postgres(&mut tx), &sql).await;
    match then.parse() {
        Ok(status) => Ok((Status::new(status), errors)),
        Err(_) => std::future::pending().await,
    }
}

#[post("/<level>/<then>", data = "<sql>")]
async fn at(
    level: &str,
    then: &str,
    sql: String,
    by_default: Begin<Main, ReadWrite>,
    repeatable_read: Begin<Main, RepeatableRead>,
    serializable: Begin<Main, Serializable>,
    read_only: Begin<Main, ReadOnly>,
) -> Result<(Status, String), Error> {
    match level {
        "default" => act(by_default, then, sql).await,
        "repeatable-read" => act(repeatable_read, then, sql).await,
        "serializable" => act(serializable, then, sql).await,
        "read-only" => act(read_only, then, sql).await,
        _ => Err(Error::NotFound),
    }
}

/// Runs statements on a plain connection, without a transaction of the library.
#[post("/plain", data = "<sql>")]
async fn plain(sql: String, mut session: Plain<Main>) -> String {
    run(postgres(&mut session), &sql).await
}

const HANDLER_TIMEOUT: Duration = Duration::from_millis(500);
const ONE: (&str, &str) = ("databases.main.max_connections", "1");

fn rocket(rocket: rocket::Rocket<rocket::Build>) -> rocket::Rocket<rocket::Build> {
    let all = routes![at, plain];
    rocket
        .mount("/", bounded(all, HANDLER_TIMEOUT))
        .attach(Settlement::new())
}

async fn stage() -> Stage {
    Stage::with(Backend::Postgres, &[ONE], rocket).await
}

async fn send(stage: &Stage, path: &str, statements: &[&str]) -> HttpResponse {
    let request = stage.http.request(&format!("POST {path}"));
    let response = HttpResponse::of(request.body(statements.join(NEXT))).await;
    if path.ends_with("leaked") {
        RESPONSE_ARRIVED.add_permits(1);
    }
    response
}

/// Asserts that the outcome in the response agrees with the stored notes.
async fn is_true(stage: &Stage, path: &str, statements: &[&str]) {
    let response = send(stage, path, statements).await;
    stage.nothing_is_stuck().await;
    let stored = stage.databases.notes(In::Main).await;
    let all = statements.concat();
    let written: Vec<&str> = ["first", "second"]
        .into_iter()
        .filter(|name| all.contains(name))
        .collect();
    let case = format!("{path} {statements:?}: {}", response.body);
    match response.summary() {
        (200..400, Some("committed")) => assert_eq!(stored, written, "{case}"),
        (_, Some("rolled-back")) => assert_eq!(stored, [""; 0], "{case}"),
        (500, Some("unknown")) => {}
        other => panic!("{other:?}, {case}"),
    }
    stage.databases.empty().await;
}

const FIRST: &str = "INSERT INTO notes VALUES ('first')";
const SECOND: &str = "INSERT INTO notes VALUES ('second')";
const LOSE: &str = "SELECT pg_terminate_backend(pg_backend_pid())";
const SLOW: &str = "SELECT pg_sleep(20)";
const UNSEEN: &str = "SET track_activities = off";

#[rocket::async_test]
async fn on_postgres_a_commit_sent_by_a_handler_is_refused() {
    let stage = stage().await;
    for end in [
        "COMMIT",
        "COMMIT AND CHAIN",
        "END",
        "PREPARE TRANSACTION 'p'",
    ] {
        for then in ["201", "422"] {
            let path = format!("/default/{then}");
            let response = send(&stage, &path, &[FIRST, end]).await;
            assert_eq!(
                response.summary(),
                (500, Some("unknown")),
                "{end}: {response:?}"
            );
            assert_eq!(response.kind(), "ended", "{end}");
            stage.nothing_is_stuck().await;
            assert_eq!(stage.notes().await, [""; 0], "{end}");
        }
    }
}

#[rocket::async_test]
async fn on_postgres_statements_after_the_end_of_a_transaction_write_nothing() {
    let stage = stage().await;
    for level in ["default", "repeatable-read", "serializable"] {
        for aside in [&[SECOND][..], &["BEGIN", SECOND, "COMMIT"]] {
            let statements = [&[FIRST, "ROLLBACK"], aside].concat();
            let response = send(&stage, &format!("/{level}/201"), &statements).await;
            assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
            stage.nothing_is_stuck().await;
            assert_eq!(stage.notes().await, [""; 0], "{level}: {statements:?}");
        }
    }
    // The same session can write when a request uses it without a transaction.
    let response = send(&stage, "/plain", &[FIRST]).await;
    assert_eq!((response.status, &*response.body), (200, ""));
    assert_eq!(stage.notes().await, ["first"]);
    let response = send(&stage, "/default/201", &[SECOND]).await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
}

#[rocket::async_test]
async fn on_postgres_outcomes_are_true_for_transactions_ended_by_handlers() {
    let stage = stage().await;
    for level in ["default", "repeatable-read", "serializable"] {
        for ends in [
            &[FIRST, "COMMIT"][..],
            &[FIRST, "COMMIT", "BEGIN", SECOND],
            &[FIRST, "COMMIT", "BEGIN", SECOND, "ROLLBACK"],
            &[FIRST, "COMMIT AND CHAIN", SECOND],
            &[FIRST, "ROLLBACK", SECOND],
            &[FIRST, "ROLLBACK", "BEGIN READ WRITE", SECOND, "COMMIT"],
            &[FIRST, "ROLLBACK AND CHAIN", SECOND, "COMMIT"],
            &[FIRST, "CLOSE ALL"],
            &[FIRST, "CLOSE ALL", "COMMIT"],
        ] {
            for then in ["201", "500"] {
                is_true(&stage, &format!("/{level}/{then}"), ends).await;
            }
        }
        for ends in [
            &[FIRST, "COMMIT"][..],
            &[FIRST, "COMMIT", "BEGIN", SECOND],
            &[FIRST, "COMMIT", "BEGIN", SECOND, "ROLLBACK"],
            &[FIRST, "COMMIT AND CHAIN", SECOND],
            &[FIRST, "ROLLBACK", SECOND],
        ] {
            let lost = [ends, &[LOSE]].concat();
            for then in ["201", "500"] {
                is_true(&stage, &format!("/{level}/{then}"), &lost).await;
            }
        }
    }
}

#[rocket::async_test]
async fn on_postgres_outcomes_are_true_for_handlers_that_time_out_or_leak() {
    let stage = stage().await;
    for then in ["timed-out", "leaked"] {
        for level in ["default", "repeatable-read", "serializable"] {
            for ends in [
                &[FIRST, "COMMIT", SLOW][..],
                &["INSERT INTO notes VALUES ('first'); COMMIT; SELECT pg_sleep(20)"],
                &[UNSEEN, FIRST, "COMMIT", "SELECT 1"],
                &[FIRST, "ROLLBACK", SECOND, SLOW],
                &[FIRST, "COMMIT", LOSE],
                &[FIRST, "ROLLBACK", SECOND, LOSE],
            ] {
                is_true(&stage, &format!("/{level}/{then}"), ends).await;
            }
        }
    }
    for statements in [
        &["COMMIT", FIRST][..],
        &["COMMIT", "BEGIN", FIRST, "COMMIT", LOSE],
    ] {
        for then in ["201", "500", "timed-out"] {
            let path = format!("/read-only/{then}");
            let response = send(&stage, &path, statements).await;
            assert_ne!(
                response.outcome(),
                Some("committed"),
                "{path}: {response:?}"
            );
            assert_eq!(stage.notes().await, [""; 0], "{path}");
        }
    }
}

#[rocket::async_test]
async fn on_postgres_outcomes_are_true_after_an_idle_in_transaction_timeout() {
    let limit = ("databases.main.idle_in_transaction_timeout", "\"100ms\"");
    let stage = Stage::with(Backend::Postgres, &[ONE, limit], rocket).await;
    let ended = "DO $$ BEGIN PERFORM pg_sleep(0.01); END $$";
    for statements in [
        &[FIRST, "COMMIT", "BEGIN", SECOND, ended][..],
        &[FIRST, ended],
    ] {
        is_true(&stage, "/default/timed-out", statements).await;
    }
}

/// The library cannot query the server for the outcome then.
#[rocket::async_test]
async fn on_postgres_outcomes_are_true_while_no_session_can_be_opened() {
    let mut databases = Databases::with_tables(Backend::Postgres).await;
    let mut admin = databases.postgres(In::Main).await;
    let (_, name) = databases.url(In::Main).rsplit_once('/').unwrap();
    let role = format!("full_{name}");
    let make = format!("CREATE ROLE {role} LOGIN; GRANT ALL ON notes, pairs TO {role}");
    admin
        .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(make)))
        .await
        .unwrap();
    let url = with_user(databases.url(In::Main), &role);
    databases.reach_at(In::Main, url);
    let stage = Stage::on(databases, &[ONE], rocket).await;
    for path in ["/default/timed-out", "/serializable/timed-out"] {
        let limit = |most: i32| format!("ALTER ROLE {role} CONNECTION LIMIT {most}");
        stage.nothing_is_stuck().await;
        admin.execute(sqlx::AssertSqlSafe(limit(0))).await.unwrap();
        let response = send(&stage, path, &[FIRST, "COMMIT"]).await;
        admin.execute(sqlx::AssertSqlSafe(limit(-1))).await.unwrap();
        let stored = stage.notes().await;
        let is_true = response.outcome() == Some("unknown") || stored.is_empty();
        assert!(is_true, "{path}: {stored:?}, {response:?}");
        stage.databases.empty().await;
    }
}

fn with_user(url: &str, user: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
    format!("postgres://{user}@{rest}")
}

#[rocket::async_test]
async fn on_postgres_outcomes_are_true_behind_a_full_pooler() {
    let mut databases = Databases::with_tables(Backend::Postgres).await;
    let settings = [("default_pool_size", "2")];
    let pooler = PgBouncer::to(&databases.main, support::Mode::Session, &settings).await;
    databases.reach_at(In::Main, pooler.url(&databases.main));
    let stage = Stage::on(databases, &[ONE], rocket).await;
    is_true(&stage, "/read-only/201", &["SELECT 1"]).await;
    for level in ["default", "serializable"] {
        is_true(&stage, &format!("/{level}/timed-out"), &[FIRST, "COMMIT"]).await;
    }
}

/// The library does not terminate a COMMIT that waits for a standby. The transaction would then be
/// committed on this server only.
#[rocket::async_test]
async fn on_postgres_a_commit_waiting_for_a_standby_is_not_reported_as_rolled_back() {
    let settings = "synchronous_commit = local\nsynchronous_standby_names = 'absent'\n";
    let cluster = Cluster::start_with(settings).await;
    let databases = Databases::on_cluster(&cluster).await;
    let stage = Stage::on(databases, &[ONE], rocket).await;
    for level in ["default", "serializable"] {
        let statements = ["SET synchronous_commit = on", FIRST, "COMMIT"];
        let response = send(&stage, &format!("/{level}/timed-out"), &statements).await;
        let mut admin = cluster.admin().await;
        for value in ["", "absent"] {
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{value}'");
            admin.execute(sqlx::AssertSqlSafe(set)).await.unwrap();
            admin.execute("SELECT pg_reload_conf()").await.unwrap();
            // Without the standby in the settings, the waiting COMMIT completes.
            stage.nothing_is_stuck().await;
        }
        let stored = stage.notes().await;
        let is_true = response.outcome() == Some("unknown") || stored.is_empty();
        assert!(is_true, "{level}: {stored:?}, {response:?}");
        stage.databases.empty().await;
    }
}

#[rocket::async_test]
async fn on_postgres_a_prepared_transaction_is_not_reported_as_rolled_back() {
    let cluster = Cluster::start_with("max_prepared_transactions = 10\n").await;
    let databases = Databases::on_cluster(&cluster).await;
    let stage = Stage::on(databases, &[ONE], rocket).await;
    for level in ["default", "serializable"] {
        for then in ["201", "500", "timed-out"] {
            for lost in [&[][..], &[LOSE]] {
                let path = format!("/{level}/{then}");
                let statements = [&[FIRST, "PREPARE TRANSACTION 'p'"], lost].concat();
                let response = send(&stage, &path, &statements).await;
                let mut admin = stage.databases.postgres(In::Main).await;
                // Fails if the transaction was not prepared.
                let _result = admin.execute("COMMIT PREPARED 'p'").await;
                let stored = stage.notes().await;
                let is_true = response.outcome() == Some("unknown") || stored.is_empty();
                assert!(is_true, "{path}: {stored:?}, {response:?}");
                stage.databases.empty().await;
            }
        }
    }
}
