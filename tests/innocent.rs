//! SQL that a handler may run. It works the same as without this library.

use std::time::Duration;

use rocket::http::Status;
use rocket::{post, routes};
use rocket_db_pools::Connection as PlainConnection;
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{Mode, RepeatableRead, Serializable, bounded};
use rocket_tx::{Begin, Error, Read, Settlement, with_backend};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, HttpResponse, In, Main, Stage};

/// Separates two statements in the body of a request.
const NEXT: &str = ";;";

/// Runs all statements, even if one fails. Returns the text of their errors.
async fn run(connection: &mut UrlConnection, script: &str) -> String {
    let mut errors = String::new();
    for sql in script.split(NEXT) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let result = with_backend!(connection, |db| sql.execute(db).await.map(drop));
        if let Err(error) = result {
            errors.push_str(&error.to_string());
        }
    }
    errors
}

async fn run_in<M: Mode>(begin: Begin<Main, M>, sql: &str) -> Result<(Status, String), Error> {
    let mut tx = begin.begin().await?;
    let errors = run(&mut tx, sql).await;
    Ok((Status::Created, errors))
}

#[post("/in/<level>", data = "<sql>")]
async fn at(
    level: &str,
    sql: String,
    by_default: Begin<Main>,
    repeatable_read: Begin<Main, RepeatableRead>,
    serializable: Begin<Main, Serializable>,
) -> Result<(Status, String), Error> {
    match level {
        "default" => run_in(by_default, &sql).await,
        "repeatable-read" => run_in(repeatable_read, &sql).await,
        "serializable" => run_in(serializable, &sql).await,
        _ => Err(Error::NotFound),
    }
}

#[post("/both", data = "<sql>")]
async fn both(
    sql: String,
    begin: Begin<Main>,
    audit: Begin<Audit>,
) -> Result<(Status, String), Error> {
    let response = run_in(begin, &sql).await;
    note(&mut *audit.begin().await?, "audit").await?;
    response
}

#[post("/read", data = "<sql>")]
async fn read(sql: String, mut read: Read<Main>) -> String {
    run(&mut read, &sql).await
}

/// Runs the statements without a transaction of rocket_tx.
#[post("/plain", data = "<sql>")]
async fn plain(sql: String, mut session: PlainConnection<Main>) -> String {
    run(&mut session, &sql).await
}

/// Adds a note if there is none. A table lock makes concurrent requests run one after another.
async fn at_most_one<M: Mode>(begin: Begin<Main, M>) -> Result<Status, Error> {
    let mut tx = begin.begin().await?;
    let UrlConnection::Postgres(db) = &mut *tx else {
        return Ok(Status::NotImplemented);
    };
    db.execute("LOCK TABLE notes IN EXCLUSIVE MODE").await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes")
        .fetch_one(&mut **db)
        .await?;
    if count > 0 {
        return Ok(Status::Conflict);
    }
    db.execute("INSERT INTO notes SELECT gen_random_uuid()::text")
        .await?;
    // Gives the other request time to start waiting for the lock.
    db.execute("SELECT pg_sleep(0.3)").await?;
    Ok(Status::Created)
}

#[post("/only-one/default")]
async fn only_one(begin: Begin<Main>) -> Result<Status, Error> {
    at_most_one(begin).await
}

#[post("/only-one/repeatable-read")]
async fn only_one_repeatable_read(begin: Begin<Main, RepeatableRead>) -> Result<Status, Error> {
    at_most_one(begin).await
}

const HANDLER_TIMEOUT: Duration = Duration::from_millis(500);

fn rocket(rocket: rocket::Rocket<rocket::Build>) -> rocket::Rocket<rocket::Build> {
    let routes = routes![at, both, plain, only_one, only_one_repeatable_read];
    rocket
        .mount("/", routes)
        .mount("/", bounded(routes![read], HANDLER_TIMEOUT))
        .attach(Settlement::new())
}

async fn send(stage: &Stage, path: &str, statements: &[&str]) -> HttpResponse {
    let request = stage.http.request(&format!("POST {path}"));
    HttpResponse::of(request.body(statements.join(NEXT))).await
}

const FIRST: &str = "INSERT INTO notes (text) VALUES ('first')";
const SECOND: &str = "INSERT INTO notes (text) VALUES ('second')";

/// Each list of statements works twice, and its leftovers do not affect the next one.
async fn all_work(stage: &Stage, path: &str, all: &[&[&str]]) {
    for statements in all {
        for _ in 0..2 {
            let response = send(stage, path, statements).await;
            let context = format!("{path} {statements:?}: {response:?}");
            assert_eq!(response.summary(), (201, Some("committed")), "{context}");
            assert_eq!(response.body, "", "{context}");
            assert_eq!(
                stage.databases.notes(In::Main).await,
                ["first"],
                "{context}"
            );
            stage.databases.empty().await;
        }
    }
}

const POSTGRES: &[&[&str]] = &[
    &[
        "CREATE TEMP TABLE t (a int) ON COMMIT PRESERVE ROWS",
        "INSERT INTO t VALUES (1)",
        FIRST,
    ],
    &["CREATE TEMP TABLE t2 (a int) ON COMMIT DROP", FIRST],
    &["LISTEN x", "NOTIFY x, 'y'", "UNLISTEN x", FIRST],
    &["SELECT lo_from_bytea(0, 'a')", FIRST],
    &["SELECT pg_advisory_lock(1)", FIRST],
    &["PREPARE q AS SELECT 1", "EXECUTE q", "DEALLOCATE q", FIRST],
    &["PREPARE q AS SELECT 1", "DEALLOCATE ALL", FIRST],
    &["DECLARE h CURSOR WITH HOLD FOR SELECT 1", FIRST],
    &[
        "CREATE TABLE made (a int)",
        "CREATE INDEX ON made (a)",
        "ALTER TABLE notes ADD COLUMN IF NOT EXISTS b int",
        "DROP TABLE made",
        "INSERT INTO notes (text) VALUES ('first')",
    ],
    &["CREATE EXTENSION pg_trgm", "DROP EXTENSION pg_trgm", FIRST],
    &["SET LOCAL ROLE pg_monitor", "RESET ROLE", FIRST],
    &[
        "SET LOCAL statement_timeout = 1",
        "RESET statement_timeout",
        FIRST,
    ],
    &[FIRST, "SET statement_timeout = 1"],
    &[
        FIRST,
        "SET lock_timeout = 1",
        "SET idle_in_transaction_session_timeout = 5",
    ],
    &[
        "SET CONSTRAINTS ALL DEFERRED",
        "INSERT INTO pairs VALUES (1, 2)",
        "INSERT INTO pairs VALUES (2, 1)",
        FIRST,
    ],
    &["SET TRANSACTION READ WRITE", FIRST],
    &["TRUNCATE notes, pairs", FIRST],
    &["SET search_path = pg_temp", "RESET search_path", FIRST],
    &["LOCK TABLE notes IN ACCESS EXCLUSIVE MODE", FIRST],
    &["DISCARD PLANS", "DISCARD SEQUENCES", "DISCARD TEMP", FIRST],
    &["RESET ALL", FIRST],
    &["ANALYZE notes", FIRST],
];

const SQLITE: &[&[&str]] = &[
    &["CREATE TEMP TABLE t (a)", "INSERT INTO t VALUES (1)", FIRST],
    &[
        "CREATE TEMP TRIGGER g AFTER INSERT ON notes BEGIN SELECT 1; END",
        FIRST,
    ],
    &["CREATE TEMP VIEW v AS SELECT 1", FIRST],
    &[
        "CREATE TABLE made (a INTEGER PRIMARY KEY, b REFERENCES made)",
        "CREATE INDEX i ON made (b)",
        "ALTER TABLE made ADD COLUMN c",
        "ALTER TABLE made DROP COLUMN c",
        "ALTER TABLE made RENAME TO mode",
        "DROP TABLE mode",
        FIRST,
    ],
    &[
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "INSERT INTO f VALUES ('x')",
        "INSERT INTO f(f) VALUES ('optimize')",
        "DROP TABLE f",
        FIRST,
    ],
    &[
        "CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
        "INSERT INTO r VALUES (1, 2, 3)",
        "DROP TABLE r",
        FIRST,
    ],
    &[
        "PRAGMA defer_foreign_keys = ON",
        "INSERT INTO pairs VALUES (1, 2)",
        "INSERT INTO pairs VALUES (2, 1)",
        FIRST,
    ],
    &["SAVEPOINT s", FIRST, "ROLLBACK TO s", "RELEASE s", FIRST],
    &[
        "PRAGMA table_info(notes)",
        "PRAGMA foreign_key_check",
        "PRAGMA integrity_check",
        FIRST,
    ],
    &["ANALYZE", "REINDEX", "PRAGMA optimize", FIRST],
    &["DELETE FROM notes", "DELETE FROM pairs", FIRST],
    &["INSERT OR REPLACE INTO notes VALUES ('first')"],
    &["INSERT INTO notes VALUES ('first') ON CONFLICT DO NOTHING RETURNING rowid"],
    &[
        "PRAGMA user_version = 3",
        "PRAGMA application_id = 3",
        FIRST,
    ],
    &["PRAGMA incremental_vacuum", FIRST],
    &[
        "PRAGMA recursive_triggers = ON",
        "PRAGMA case_sensitive_like = ON",
        "PRAGMA cache_size = -100",
        FIRST,
    ],
    &[
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO pairs SELECT i, i FROM n",
        "DELETE FROM pairs",
        FIRST,
    ],
    &[
        "EXPLAIN QUERY PLAN SELECT * FROM notes",
        "SELECT json_group_array(text) FROM notes",
        FIRST,
    ],
];

#[rocket::async_test]
async fn on_postgres_a_transaction_takes_any_sql_that_does_not_end_it() {
    let stage = Stage::new(Backend::Postgres, rocket).await;
    for path in ["/in/default", "/in/repeatable-read", "/in/serializable"] {
        all_work(&stage, path, POSTGRES).await;
    }
}

#[rocket::async_test]
async fn on_sqlite_a_transaction_takes_any_sql_that_does_not_end_it() {
    let stage = Stage::new(Backend::Sqlite, rocket).await;
    for path in ["/in/default", "/both"] {
        all_work(&stage, path, SQLITE).await;
    }
}

#[rocket::async_test]
async fn on_postgres_a_plain_connection_behaves_as_without_this_library() {
    const PROCEDURE: &str = "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN \
        INSERT INTO notes VALUES ('first'); COMMIT; \
        INSERT INTO notes VALUES ('second'); COMMIT; END $$";

    let one = ("databases.main.max_connections", "1");
    let stage = Stage::with(Backend::Postgres, &[one], rocket).await;
    stage.databases.execute(In::Main, PROCEDURE).await;
    for (statements, stored) in [
        (&["CALL p()"][..], &["first", "second"][..]),
        (&["VACUUM notes", FIRST], &["first"]),
        (
            &[
                "CREATE INDEX CONCURRENTLY i ON pairs (partner)",
                "DROP INDEX CONCURRENTLY i",
                FIRST,
            ],
            &["first"],
        ),
        (&["BEGIN", FIRST, "COMMIT"], &["first"]),
        (&["BEGIN", FIRST, "ROLLBACK", SECOND], &["second"]),
        (&["DISCARD ALL", FIRST], &["first"]),
        (&["RESET ALL", FIRST], &["first"]),
        (
            &[
                "BEGIN ISOLATION LEVEL SERIALIZABLE",
                FIRST,
                "COMMIT AND CHAIN",
                SECOND,
                "COMMIT",
            ],
            &["first", "second"],
        ),
    ] {
        // The session has been used by a transaction before.
        let before = send(&stage, "/in/default", &["SELECT 1"]).await;
        assert_eq!(before.summary(), (201, Some("committed")));
        let response = send(&stage, "/plain", statements).await;
        assert_eq!(response.body, "", "{statements:?}");
        assert_eq!(
            stage.databases.notes(In::Main).await,
            stored,
            "{statements:?}"
        );
        stage.databases.empty().await;
    }
}

/// A handler that first takes a lock also works above READ COMMITTED: the lock comes before the
/// snapshot.
#[rocket::async_test]
async fn on_postgres_the_first_query_of_a_handler_fixes_the_snapshot() {
    const REPEATABLE_READ: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET \
        default_transaction_isolation = ''repeatable read''', current_database()); END $$";

    for (path, level) in [
        ("/only-one/default", None),
        ("/only-one/default", Some(REPEATABLE_READ)),
        ("/only-one/repeatable-read", None),
    ] {
        let databases = Databases::with_tables(Backend::Postgres).await;
        if let Some(level) = level {
            databases.execute(In::Main, level).await;
        }
        let stage = Stage::on(databases, &[], rocket).await;
        let (one, other) = rocket::tokio::join!(send(&stage, path, &[]), send(&stage, path, &[]));
        let stored = stage.databases.notes(In::Main).await.len();
        assert_eq!(stored, 1, "{path}: {one:?}, {other:?}");
    }
}

/// An abandoned session frees its place in the pool only when the server has ended its statement.
#[rocket::async_test]
async fn on_postgres_abandoned_reads_never_exceed_the_connection_limit() {
    const ACTIVE: &str = "SELECT pid::text FROM pg_stat_activity \
        WHERE datname = current_database() AND state = 'active' AND query LIKE '%pg_sleep(25)%' \
            AND pid <> pg_backend_pid()";

    let one = ("databases.main.max_connections", "1");
    let wait = ("databases.main.connect_timeout", "\"20s\"");
    let stage = Stage::with(Backend::Postgres, &[one, wait], rocket).await;
    for _ in 0..3 {
        // The pool has one connection, so each request needs the place of the one before.
        let response = send(&stage, "/read", &["SELECT pg_sleep(25)"]).await;
        assert_eq!(response.status, 503, "{response:?}");
        let active = stage.databases.texts(In::Main, ACTIVE).await;
        assert!(active.len() <= 1, "{active:?}");
    }
}
