//! Random statements: for any statements of a handler, the response reports the true outcome.
//!
//! Each handler runs a few random statements, most of which a handler should not run, and ignores
//! their errors. At its end it reads the rows that its transaction sees. Then the test compares the
//! reported outcome with the stored rows:
//!
//! | outcome | stored |
//! | --- | --- |
//! | `committed` | the rows that the transaction saw at its end |
//! | `rolled-back`, or no outcome | the rows from before |
//! | `unknown`, `partial` | any rows; the response must not be a success |
//!
//! Later requests that run normal statements are served correctly.
//!
//! ```text
//! STATEMENTS=1500 STATEMENTS_SEED=7 tests/run any_statements_of_a_handler --nocapture
//! ```

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use rocket::futures::{FutureExt, StreamExt};
use rocket::http::Status;
use rocket::{State, get, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{Mode, ReadWrite, Serializable, bounded};
use rocket_tx::{Begin, Commit, Error, Read, Rollback, Settlement, Tx, with_backend};
use sqlx::Connection as _;

use crate::history::variable;
use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, Databases, In, Main, Stage};

const BOTH: &[&str] = &[
    "BEGIN",
    "COMMIT",
    "END",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE a",
    "ROLLBACK TO a",
    "COMMIT; BEGIN",
    "ROLLBACK; BEGIN",
    "INSERT INTO notes (text) VALUES ('one'); COMMIT; INSERT INTO notes (text) VALUES ('two')",
    "INSERT INTO notes (text) VALUES ('lost'); SELECT nonsense",
    "ROLLBACK; INSERT INTO notes (text) VALUES ('alone')",
    "DELETE FROM notes",
    "INSERT INTO pairs (id, partner) VALUES (1, 2)",
    "SELECT nonsense",
    "CREATE TABLE more (a INTEGER)",
    "DROP TABLE more",
    "CREATE TEMP TABLE notes (text TEXT)",
    "DROP TABLE no_such_table",
];

const SQLITE: &[&str] = &[
    "BEGIN IMMEDIATE",
    "ROLLBACK; PRAGMA journal_mode = DELETE",
    "ROLLBACK; PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF",
    "ROLLBACK; VACUUM",
    "ROLLBACK; PRAGMA foreign_keys = OFF",
    "ROLLBACK; PRAGMA locking_mode = EXCLUSIVE; SELECT count(*) FROM notes",
    "ATTACH ':memory:' AS other",
    "PRAGMA query_only = ON",
    "PRAGMA defer_foreign_keys = ON",
    "PRAGMA writable_schema = ON",
    "PRAGMA user_version = 7",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA locking_mode = EXCLUSIVE",
    "REINDEX",
    "ANALYZE",
    "INSERT OR ROLLBACK INTO pairs (id, partner) VALUES (3, 3), (3, 3)",
    "INSERT OR FAIL INTO pairs (id, partner) VALUES (4, 4), (4, 4)",
];

const POSTGRES: &[&str] = &[
    "BEGIN READ WRITE",
    "COMMIT; BEGIN READ WRITE",
    "ROLLBACK; BEGIN READ WRITE",
    "ROLLBACK; SET default_transaction_read_only = off",
    "CLOSE ALL",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "ABORT",
    "START TRANSACTION READ ONLY",
    "PREPARE TRANSACTION 'left'",
    "SET TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET search_path = nowhere",
    "SET LOCAL statement_timeout = 1; SELECT pg_sleep(1)",
    "SET statement_timeout = 1",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "DISCARD ALL",
    "COMMIT; DISCARD ALL",
    "DEALLOCATE ALL",
    "DECLARE a CURSOR WITH HOLD FOR SELECT 1",
    "LISTEN a; NOTIFY a",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_terminate_backend(pg_backend_pid())",
    "SELECT pg_cancel_backend(pg_backend_pid())",
    "DO $$ BEGIN COMMIT; END $$",
    "DO $$ BEGIN ROLLBACK; END $$",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE",
    "COPY notes FROM STDIN",
];

/// How long a handler may take.
const LIMIT: Duration = Duration::from_secs(2);

/// One step of a handler.
#[derive(Debug, Clone, Copy)]
enum Step {
    Note,
    Sql(&'static str),
    /// A statement whose future is dropped after one poll.
    Dropped(&'static str),
    /// A query of many rows, dropped after the first.
    FirstRow,
    /// A nested transaction of sqlx with a note: committed, rolled back or dropped.
    Nested(u8),
    /// A nested transaction that is left open.
    Forgotten,
    /// Postgres: an export that is dropped before its end.
    Export,
}

/// How a handler ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Status(u16),
    Panic,
    Commit,
    Rollback,
    /// A task keeps the guard for a moment.
    Leak,
    /// The handler does not end, and is dropped after its time limit.
    Never,
}

#[derive(Debug, Clone)]
struct Script {
    is_serializable: bool,
    has_audit: bool,
    steps: Vec<Step>,
    end: End,
}

impl Script {
    /// Returns whether the handler may have read the replies to other statements.
    fn is_blind(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Export => true,
            Step::Sql(sql) | Step::Dropped(sql) => sql.starts_with("COPY"),
            _ => false,
        })
    }

    fn draw(rng: &mut Rng, backend: Backend) -> Self {
        let own = match backend {
            Backend::Sqlite => SQLITE,
            Backend::Postgres => POSTGRES,
        };
        let step = |rng: &mut Rng| {
            let sql = match rng.bool() {
                true => BOTH[rng.usize(..BOTH.len())],
                false => own[rng.usize(..own.len())],
            };
            match rng.u8(..12) {
                0..3 => Step::Note,
                3 => Step::Dropped(sql),
                4 => Step::FirstRow,
                5 => Step::Nested(rng.u8(..3)),
                6 if rng.bool() => Step::Forgotten,
                7 if rng.bool() && backend == Backend::Postgres => Step::Export,
                _ => Step::Sql(sql),
            }
        };
        let mut steps = vec![Step::Note];
        steps.extend((0..rng.usize(1..5)).map(|_| step(rng)));
        let ends = [
            End::Status(201),
            End::Status(201),
            End::Status(303),
            End::Status(422),
            End::Status(500),
            End::Panic,
            End::Commit,
            End::Rollback,
            End::Leak,
            End::Never,
        ];
        Self {
            is_serializable: rng.u8(..4) == 0,
            has_audit: rng.bool(),
            steps,
            end: ends[rng.usize(..ends.len())],
        }
    }
}

/// The script of the next request, and the rows that the request saw at its end.
#[derive(Default)]
struct Scene {
    script: Option<Script>,
    seen: Option<Vec<String>>,
}

type Shared = Arc<Mutex<Scene>>;

const MANY: &str = "\
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
    SELECT 'a row of another query' FROM n";

async fn take(connection: &mut UrlConnection, step: Step, text: &str) {
    match step {
        Step::Note => drop(note(connection, text).await),
        Step::Sql(sql) => drop(run(connection, sql).await),
        Step::Dropped(sql) => drop(run(connection, sql).now_or_never()),
        Step::FirstRow => with_backend!(connection, |db| {
            drop(sqlx::query(MANY).fetch(db).next().await);
        }),
        Step::Nested(how) => with_backend!(connection, |db| {
            let Ok(mut inner) = db.begin().await else {
                return;
            };
            let insert = sqlx::query("INSERT INTO notes (text) VALUES ($1)");
            drop(insert.bind(text).execute(&mut *inner).await);
            match how {
                0 => drop(inner.commit().await),
                1 => drop(inner.rollback().await),
                _ => drop(inner),
            }
        }),
        Step::Forgotten => with_backend!(connection, |db| {
            if let Ok(inner) = db.begin().await {
                std::mem::forget(inner);
            }
        }),
        Step::Export => {
            if let UrlConnection::Postgres(db) = connection {
                let copy = "COPY (SELECT generate_series(1, 2000)) TO STDOUT";
                if let Ok(mut rows) = (**db).copy_out_raw(copy).await {
                    drop(rows.next().await);
                }
            }
        }
    }
}

/// Returns all notes that the connection sees. The schema is named, because the handler may have
/// changed where unqualified names lead.
async fn see(connection: &mut UrlConnection) -> Option<Vec<String>> {
    let seen = match connection {
        UrlConnection::Sqlite(db) => {
            sqlx::query_scalar("SELECT text FROM main.notes ORDER BY text")
                .fetch_all(&mut **db)
                .await
        }
        UrlConnection::Postgres(db) => {
            sqlx::query_scalar("SELECT text FROM public.notes ORDER BY text")
                .fetch_all(&mut **db)
                .await
        }
    };
    seen.ok()
}

enum Response {
    Plain(Status),
    Commit(Commit<Status>),
    Rollback(Rollback<Status>),
}

impl<'r> rocket::response::Responder<'r, 'static> for Response {
    fn respond_to(self, request: &'r rocket::Request<'_>) -> rocket::response::Result<'static> {
        match self {
            Self::Plain(status) => status.respond_to(request),
            Self::Commit(response) => response.respond_to(request),
            Self::Rollback(response) => response.respond_to(request),
        }
    }
}

async fn play<M: Mode>(
    main: Begin<Main, M>,
    audit: Begin<Audit, M>,
    scene: &Shared,
) -> Result<Response, Error> {
    let script = scene.lock().script.take();
    let script = script.ok_or(Error::NotFound)?;
    let mut tx = main.begin().await?;
    for (number, step) in script.steps.iter().enumerate() {
        take(&mut tx, *step, &format!("step {number}")).await;
    }
    if script.has_audit {
        note(&mut *audit.begin().await?, "audit").await?;
    }
    let seen = see(&mut tx).await;
    scene.lock().seen = seen;
    match script.end {
        End::Status(code) => Ok(Response::Plain(Status::new(code))),
        End::Panic => panic!("as drawn"),
        End::Commit => Ok(Response::Commit(Commit(Status::NotFound))),
        End::Rollback => Ok(Response::Rollback(Rollback(Status::Ok))),
        End::Leak => {
            rocket::tokio::spawn(async move {
                rocket::tokio::task::yield_now().await;
                drop(tx);
            });
            Ok(Response::Plain(Status::Created))
        }
        End::Never => std::future::pending().await,
    }
}

#[post("/default")]
async fn default(
    main: Begin<Main, ReadWrite>,
    audit: Begin<Audit, ReadWrite>,
    scene: &State<Shared>,
) -> Result<Response, Error> {
    play(main, audit, scene).await
}

#[post("/serializable")]
async fn serializable(
    main: Begin<Main, Serializable>,
    audit: Begin<Audit, Serializable>,
    scene: &State<Shared>,
) -> Result<Response, Error> {
    play(main, audit, scene).await
}

#[post("/innocent/<text>")]
async fn innocent(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    Ok(Status::Created)
}

#[get("/count/<number>")]
async fn count(number: i64, mut read: Read<Main>) -> Result<String, Error> {
    let sql = "SELECT $1 + (SELECT count(*) FROM notes)";
    let count: i64 = with_backend!(read, |db| sqlx::query_scalar(sql)
        .bind(number)
        .fetch_one(db)
        .await?);
    Ok(count.to_string())
}

/// Later requests with normal statements are served. There are more of them than connections in the
/// pool.
async fn others_are_served(stage: &Stage, before: usize, script: &Script) {
    for number in 1..=6 {
        let response = stage.send(&format!("POST /innocent/{number}")).await;
        assert_eq!(
            response.summary(),
            (201, Some("committed")),
            "{script:?}: {response:?}"
        );
        let response = stage.send(&format!("GET /count/{}", 1_000 * number)).await;
        let expected = 1_000 * number + before + number;
        assert_eq!(
            response.body,
            expected.to_string(),
            "{script:?}: {response:?}"
        );
    }
    let stored = stage.databases.notes(In::Main).await.len();
    assert_eq!(stored, before + 6, "{script:?}");
    stage.databases.empty().await;
}

async fn any_statements_of_a_handler_get_a_true_outcome(backend: Backend) {
    let (seed, times) = (
        variable("STATEMENTS_SEED", 20_261_126_u64),
        variable("STATEMENTS", 60_u64),
    );
    println!("{backend:?}: STATEMENTS_SEED={seed} STATEMENTS={times}");
    let mut rng = Rng::with_seed(seed);
    let scene = Shared::default();
    let stage = Stage::new(backend, |rocket| {
        rocket
            .manage(Arc::clone(&scene))
            // sqlx waits for ever for the reply to a COPY FROM STDIN without data.
            .mount("/", bounded(routes![default, serializable], LIMIT))
            .mount("/", routes![innocent, count])
            .attach(Settlement::new())
    })
    .await;
    let mut outcomes = std::collections::BTreeMap::<String, u32>::new();
    for number in 0..times {
        let script = Script::draw(&mut rng, backend);
        // A row from before, which the handler can delete.
        stage.databases.execute(In::Main, OLD_ROW).await;
        *scene.lock() = Scene {
            script: Some(script.clone()),
            seen: None,
        };
        let path = match script.is_serializable {
            true => "POST /serializable",
            false => "POST /default",
        };
        let response = stage.send(path).await;
        crate::support::eventually("nothing is outstanding", async || {
            stage.outstanding().is_empty()
        })
        .await;
        let [main, audit] = stored(&stage.databases).await;
        let seen = scene.lock().seen.take();
        let (status, outcome) = response.summary();
        let context = format!("{number}, {script:?}: {response:?}, seen {seen:?}, stored {main:?}");
        match outcome {
            Some("committed") => {
                // After a COPY that was not read to its end, the handler got the replies to other
                // statements.
                if !script.is_blind() {
                    assert_eq!(Some(&main), seen.as_ref(), "{context}");
                }
                assert_eq!(audit.len(), usize::from(script.has_audit), "{context}");
            }
            Some("rolled-back") => {
                assert_eq!(
                    (&main[..], &audit[..]),
                    (&["old".to_owned()][..], &[][..]),
                    "{context}"
                );
                assert!(status >= 400 || script.end == End::Rollback, "{context}");
            }
            Some("unknown" | "partial") => assert!(status >= 500, "{context}"),
            other => panic!("{other:?}: {context}"),
        }
        *outcomes
            .entry(outcome.unwrap_or_default().to_owned())
            .or_default() += 1;
        others_are_served(&stage, main.len(), &script).await;
    }
    println!("{backend:?}: {outcomes:?}");
}

const OLD_ROW: &str = "INSERT INTO notes (text) VALUES ('old')";

async fn stored(databases: &Databases) -> [Vec<String>; 2] {
    [
        databases.notes(In::Main).await,
        databases.notes(In::Audit).await,
    ]
}

on_each_backend!(any_statements_of_a_handler_get_a_true_outcome);
