//! A response reports success only if the whole transaction was committed, whatever the handler
//! does: swallowed errors, raw COMMITs, deferred constraints, savepoints.

use rocket::fairing::AdHoc;
use rocket::http::{Cookie, CookieJar, Header, Status};
use rocket::response::status::Created;
use rocket::{post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::{Error, Settlement, Tx, with_backend};
use sqlx::Connection;

use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, HttpResponse, In, Main, Stage};

/// Runs SQL, ignores its error, writes once more, and returns a success.
#[post("/swallow/<database>", data = "<sql>")]
async fn swallow(
    database: &str,
    sql: String,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> (Status, &'static str) {
    let _swallowed = note(&mut main, "before").await;
    let _swallowed = note(&mut audit, "before").await;
    let connection: &mut UrlConnection = match database {
        "main" => &mut main,
        _ => &mut audit,
    };
    let _swallowed = run_text(connection, sql).await;
    let _swallowed = note(&mut main, "after").await;
    let _swallowed = note(&mut audit, "after").await;
    (Status::Created, "created")
}

/// The same as `swallow`, with one database outstanding.
#[post("/swallow-alone", data = "<sql>")]
async fn swallow_alone(sql: String, mut main: Tx<Main>) -> (Status, &'static str) {
    let _swallowed = note(&mut main, "before").await;
    let _swallowed = run_text(&mut main, sql).await;
    let _swallowed = note(&mut main, "after").await;
    (Status::Created, "created")
}

async fn run_text(connection: &mut UrlConnection, sql: String) -> sqlx::Result<()> {
    with_backend!(connection, |db| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(db)
            .await
            .map(drop)
    })
}

/// Writes a note inside a savepoint. The savepoint is released if `kept`, else rolled back.
#[post("/savepoint/<kept>")]
async fn savepoint(kept: bool, mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, "outside").await?;
    with_backend!(main, |db| {
        let mut savepoint = db.begin().await?;
        sqlx::query("INSERT INTO notes (text) VALUES ('inside')")
            .execute(&mut *savepoint)
            .await?;
        if kept {
            savepoint.commit().await?;
        } else {
            savepoint.rollback().await?;
        }
    });
    Ok(Status::Created)
}

/// Forgets a savepoint: neither its commit nor its `Drop` ever runs.
#[post("/forgotten-savepoint/<code>")]
async fn forgotten_savepoint(code: u16, mut main: Tx<Main>) -> Result<(Status, ()), Error> {
    note(&mut main, "outside").await?;
    with_backend!(main, |db| {
        let mut savepoint = db.begin().await?;
        sqlx::query("INSERT INTO notes (text) VALUES ('inside')")
            .execute(&mut *savepoint)
            .await?;
        std::mem::forget(savepoint);
    });
    Ok((Status::new(code), ()))
}

/// Inserts a row whose partner is missing, which only COMMIT checks. `mend` adds the partner.
#[post("/pairs/<database>?<mend>")]
async fn pairs(
    database: &str,
    mend: bool,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
    cookies: &CookieJar<'_>,
) -> Result<Created<&'static str>, Error> {
    note(&mut main, "pair").await?;
    note(&mut audit, "pair").await?;
    let connection: &mut UrlConnection = match database {
        "main" => &mut main,
        _ => &mut audit,
    };
    run(connection, "INSERT INTO pairs (id, partner) VALUES (1, 2)").await?;
    if mend {
        run(connection, "INSERT INTO pairs (id, partner) VALUES (2, 1)").await?;
    }
    cookies.add(Cookie::new("session", "of a success"));
    Ok(Created::new("/pairs/1").body("made").tagged_body("made"))
}

#[post("/pair-alone")]
async fn pair_alone(mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, "pair").await?;
    run(&mut main, "INSERT INTO pairs (id, partner) VALUES (1, 2)").await?;
    Ok(Status::Created)
}

/// Violates a constraint and returns the error with `?`.
#[post("/twice")]
async fn twice(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    note(&mut audit, "once").await?;
    note(&mut main, "once").await?;
    note(&mut main, "once").await?;
    Ok(Status::Created)
}

async fn stage(backend: Backend) -> Stage {
    Stage::new(backend, |rocket| {
        rocket
            .mount(
                "/",
                routes![
                    swallow,
                    swallow_alone,
                    savepoint,
                    forgotten_savepoint,
                    pairs,
                    pair_alone,
                    twice
                ],
            )
            .attach(Settlement::new())
            .attach(AdHoc::on_response("CORS", |_, response| {
                Box::pin(async move {
                    response.set_header(Header::new("Access-Control-Allow-Origin", "*"));
                })
            }))
    })
    .await
}

async fn send_sql(stage: &Stage, path: &str, sql: &str) -> HttpResponse {
    HttpResponse::of(stage.http.request(path).body(sql.to_owned())).await
}

/// Statements that make the database end or abort the transaction, each with its kind of problem.
fn ending_statements(backend: Backend) -> Vec<(&'static str, &'static str)> {
    match backend {
        Backend::Sqlite => vec![
            (
                "INSERT OR ROLLBACK INTO notes (text) VALUES (NULL)",
                "ended",
            ),
            (
                "INSERT OR ROLLBACK INTO notes (text) VALUES (NULL); BEGIN",
                "ended",
            ),
        ],
        Backend::Postgres => vec![
            ("SELECT 1 / 0", "aborted"),
            ("INSERT INTO notes (text) VALUES (NULL)", "aborted"),
            ("nonsense", "aborted"),
        ],
    }
}

const ROUTES: [&str; 3] = ["swallow/main", "swallow/audit", "swallow-alone"];

async fn a_transaction_ended_by_the_database_is_never_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for (sql, kind) in ending_statements(backend) {
        for path in ROUTES {
            let response = send_sql(&stage, &format!("POST /{path}"), sql).await;
            assert_eq!(
                response.summary(),
                (500, Some("rolled-back")),
                "{path}: {sql}"
            );
            assert_eq!(response.kind(), kind, "{path}: {sql}");
            assert_eq!(stage.notes().await, [""; 0], "{path}: {sql}");
            // The next writer gets a connection that works.
            stage.nothing_is_stuck().await;
        }
    }
}

/// On Postgres a handler can end the transaction, and its own COMMIT cannot be undone. The response
/// is never a success, and its outcome is `unknown`.
async fn a_transaction_ended_by_its_handler_is_never_a_success(backend: Backend) {
    let outcome = match backend {
        Backend::Sqlite => "rolled-back",
        Backend::Postgres => "unknown",
    };
    let stage = stage(backend).await;
    for sql in [
        "COMMIT",
        "ROLLBACK",
        "END",
        "COMMIT; BEGIN",
        "ROLLBACK; BEGIN",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
    ] {
        if backend == Backend::Sqlite && sql.ends_with("CHAIN") {
            continue; // SQLite does not have `AND CHAIN`.
        }
        for path in ROUTES {
            let response = send_sql(&stage, &format!("POST /{path}"), sql).await;
            assert_eq!(response.summary(), (500, Some(outcome)), "{path}: {sql}");
            assert_eq!(response.kind(), "ended", "{path}: {sql}");
            if backend == Backend::Sqlite {
                assert_eq!(stage.notes().await, [""; 0], "{path}: {sql}");
            }
            // Nothing is committed in the other database, on either backend.
            let other = match path {
                "swallow/audit" => In::Main,
                _ => In::Audit,
            };
            assert_eq!(stage.databases.notes(other).await, [""; 0], "{path}: {sql}");
            stage.databases.empty().await;
            stage.nothing_is_stuck().await;
        }
    }
}

/// After an error, SQLite rolls back only the statement. On Postgres a savepoint achieves the same.
async fn a_failed_statement_that_the_transaction_survives_is_harmless(backend: Backend) {
    let stage = stage(backend).await;
    let sql = match backend {
        Backend::Sqlite => "INSERT INTO notes (text) VALUES (NULL)",
        Backend::Postgres => "SAVEPOINT mine; SELECT 1; ROLLBACK TO mine",
    };
    let response = send_sql(&stage, "POST /swallow/main", sql).await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["after", "before", "after", "before"]);
}

async fn a_constraint_violation_returned_by_the_handler_is_a_409(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /twice").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert_eq!(response.kind(), "constraint");
    assert!(!response.body.contains("INSERT"), "{}", response.body);
    assert_eq!(stage.notes().await, [""; 0]);
}

async fn savepoints_work_inside_a_transaction(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /savepoint/false").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["outside"]);
    stage.databases.execute(In::Main, "DELETE FROM notes").await;

    let response = stage.send("POST /savepoint/true").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["inside", "outside"]);
}

async fn a_forgotten_savepoint_changes_nothing(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /forgotten-savepoint/409").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert_eq!(stage.notes().await, [""; 0]);
    stage.nothing_is_stuck().await;

    let response = stage.send("POST /forgotten-savepoint/201").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["inside", "outside"]);
    stage.nothing_is_stuck().await;
}

async fn a_deferred_constraint_is_a_409_in_either_database(backend: Backend) {
    let stage = stage(backend).await;
    for path in ["pairs/main", "pairs/audit", "pair-alone"] {
        let response = stage.send(&format!("POST /{path}")).await;
        assert_eq!(response.summary(), (409, Some("rolled-back")), "{path}");
        assert_eq!(response.kind(), "constraint", "{path}");
        if backend == Backend::Postgres {
            assert!(
                response.body.contains("pairs_have_a_partner"),
                "{}",
                response.body
            );
        }
        assert_eq!(stage.notes().await, [""; 0], "{path}");
        stage.nothing_is_stuck().await;
    }
    // A constraint that was violated but holds again at COMMIT does not matter.
    for database in ["main", "audit"] {
        let response = stage.send(&format!("POST /pairs/{database}?mend")).await;
        assert_eq!(response.summary(), (201, Some("committed")), "{database}");
        assert_eq!(stage.notes().await, ["pair", "pair"]);
        stage.databases.empty().await;
        stage.nothing_is_stuck().await;
    }
}

async fn a_replaced_response_keeps_the_headers_of_fairings(backend: Backend) {
    let stage = stage(backend).await;
    let made = stage.send("POST /pairs/main?mend").await;
    for name in ["location", "set-cookie", "etag"] {
        assert!(made.header(name).is_some(), "the success lacks {name}");
    }
    stage.databases.empty().await;

    let replaced = stage.send("POST /pairs/main").await;
    assert_eq!(replaced.summary(), (409, Some("rolled-back")));
    for name in ["location", "set-cookie", "etag"] {
        assert_eq!(replaced.header(name), None, "{name} is of the success");
    }
    assert_eq!(replaced.header("access-control-allow-origin"), Some("*"));
    assert_eq!(replaced.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(
        replaced.header("content-type"),
        Some("application/problem+json")
    );
    let problem: rocket::serde::json::Value = replaced.json();
    assert_eq!(
        problem["instance"],
        replaced.header("x-request-id").unwrap()
    );
}

on_each_backend!(
    a_transaction_ended_by_the_database_is_never_a_success,
    a_transaction_ended_by_its_handler_is_never_a_success,
    a_failed_statement_that_the_transaction_survives_is_harmless,
    a_constraint_violation_returned_by_the_handler_is_a_409,
    savepoints_work_inside_a_transaction,
    a_forgotten_savepoint_changes_nothing,
    a_deferred_constraint_is_a_409_in_either_database,
    a_replaced_response_keeps_the_headers_of_fairings,
);
