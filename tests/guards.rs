//! Guards: isolation and access are set by their types, and reads cannot write.

use rocket::http::Status;
use rocket::http::uri::Host;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::stream::TextStream;
use rocket::serde::json::Value;
use rocket::{get, post, routes};
use rocket_db_pools::Connection as PooledConnection;
use rocket_tx::tx::{ReadOnly, RepeatableRead, Serializable};
use rocket_tx::{Begin, Error, Read, Settlement, Tx, with_backend};
use sqlx::Connection as _;

use crate::support::stage::{note, run};
use crate::support::{Backend, Http, In, Main, Stage};

async fn count(connection: &mut rocket_tx::db::UrlConnection) -> Result<i64, Error> {
    let count: i64 = with_backend!(connection, |db| {
        sqlx::query_scalar("SELECT count(*) FROM notes")
            .fetch_one(db)
            .await?
    });
    Ok(count)
}

#[post("/read")]
async fn write_through_read(mut read: Read<Main>) -> Result<Status, Error> {
    note(&mut read, "through a Read").await?;
    Ok(Status::Created)
}

#[post("/read-only")]
async fn write_through_read_only(mut tx: Tx<Main, ReadOnly>) -> Result<Status, Error> {
    note(&mut tx, "through a ReadOnly").await?;
    Ok(Status::Created)
}

/// The errors of a write through a `Read`, and of a table that does not exist, as they are logged.
#[get("/advice")]
async fn advice(mut read: Read<Main>) -> String {
    let write = note(&mut read, "through a Read").await.map_err(Error::from);
    let missing = run(&mut read, "SELECT 1 FROM nowhere")
        .await
        .map_err(Error::from);
    format!("{}\n{}", write.unwrap_err(), missing.unwrap_err())
}

/// A guard of the service that refuses each request.
struct Refusing;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Refusing {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        let (status, reason) = (Status::Unauthorized, "this token is not known".into());
        Error::Refused { status, reason }.into_outcome(request)
    }
}

#[get("/refusing")]
fn refusing(_guard: Refusing) -> &'static str {
    "it is called"
}

#[post("/refusing/option")]
async fn option(guard: Option<Refusing>, mut tx: Tx<Main>) -> Result<Status, Error> {
    assert!(guard.is_none());
    note(&mut tx, "without the guard").await?;
    Ok(Status::Created)
}

#[get("/count")]
async fn counted(mut read: Read<Main>) -> Result<String, Error> {
    Ok(count(&mut read).await?.to_string())
}

/// A response body that queries the database while it is sent.
#[get("/stream")]
fn stream(mut read: Read<Main>) -> TextStream![String] {
    TextStream! {
        for _ in 0..3 {
            let count = count(&mut read).await.map_or("failed".into(), |count| count.to_string());
            yield format!("{count} ");
        }
    }
}

#[get("/pooled")]
async fn pooled(mut connection: PooledConnection<Main>) -> Result<String, Error> {
    Ok(count(&mut connection).await?.to_string())
}

/// Counts twice while another request commits in between.
#[get("/view")]
async fn view(
    mut tx: Tx<Main, ReadOnly<RepeatableRead>>,
    host: &Host<'_>,
) -> Result<String, Error> {
    let before = count(&mut tx).await?;
    let meanwhile = Http::new(host.port().unwrap()).send("POST /note").await;
    assert_eq!(meanwhile.summary(), (201, Some("committed")));
    let after = count(&mut tx).await?;
    Ok(format!("{before} {after}"))
}

/// Begins with the weaker isolation level first, or with the stricter one.
#[post("/isolation/<first>")]
async fn isolation(
    first: &str,
    plain: Begin<Main>,
    serializable: Begin<Main, Serializable>,
) -> Result<Status, Error> {
    if first == "plain" {
        note(&mut *plain.begin().await?, "plain").await?;
        note(&mut *serializable.begin().await?, "serializable").await?;
    } else {
        note(&mut *serializable.begin().await?, "serializable").await?;
        note(&mut *plain.begin().await?, "plain").await?;
    }
    Ok(Status::Created)
}

#[get("/level")]
async fn level(mut tx: Tx<Main, Serializable>) -> Result<String, Error> {
    match &mut *tx {
        rocket_tx::db::UrlConnection::Sqlite(_) => Ok("serializable".into()),
        rocket_tx::db::UrlConnection::Postgres(db) => {
            Ok(sqlx::query_scalar("SHOW transaction_isolation")
                .fetch_one(&mut **db)
                .await?)
        }
    }
}

#[post("/note")]
async fn plain(mut tx: Tx<Main>) -> Result<Status, Error> {
    let next = count(&mut tx).await?;
    note(&mut tx, &next.to_string()).await?;
    Ok(Status::Created)
}

/// Uses a transaction of sqlx, on a connection without a transaction of the library.
#[get("/own")]
async fn own_transaction(mut read: Read<Main>) -> Result<String, Error> {
    let count: i64 = with_backend!(read, |db| {
        let mut own = db.begin().await?;
        let count = sqlx::query_scalar("SELECT count(*) FROM notes")
            .fetch_one(&mut *own)
            .await?;
        own.commit().await?;
        count
    });
    Ok(count.to_string())
}

#[get("/read-only")]
async fn read_only(mut tx: Tx<Main, ReadOnly>) -> Result<String, Error> {
    Ok(count(&mut tx).await?.to_string())
}

/// The `Begin` is never used.
#[post("/idle")]
async fn idle(_main: Begin<Main>) -> Status {
    Status::Created
}

async fn stage(backend: Backend) -> Stage {
    Stage::new(backend, |rocket| {
        rocket
            .mount(
                "/",
                routes![
                    write_through_read,
                    write_through_read_only,
                    counted,
                    view,
                    stream,
                    pooled,
                    isolation,
                    level,
                    plain,
                    idle,
                    own_transaction,
                    read_only,
                    advice,
                    refusing,
                    option
                ],
            )
            .attach(Settlement::new())
    })
    .await
}

async fn a_write_through_a_read_fails_at_the_database(backend: Backend) {
    let stage = stage(backend).await;
    for path in ["read", "read-only"] {
        let response = stage.send(&format!("POST /{path}")).await;
        assert_eq!(response.status, 500, "{path}: {}", response.body);
        assert_eq!(stage.notes().await, [""; 0], "{path}");
    }
    // The connections still work.
    assert_eq!(stage.send("GET /count").await.body, "0");
    stage.nothing_is_stuck().await;
}

async fn an_error_of_the_database_names_the_mend(backend: Backend) {
    let stage = stage(backend).await;
    let errors = stage.send("GET /advice").await.body;
    let [write, missing] = errors.split('\n').collect::<Vec<_>>()[..] else {
        panic!("{errors}");
    };
    assert!(write.contains("take a `Tx` or a `Begin`"), "{write}");
    assert!(
        missing.contains("`db::init::<D>().migrations(..)`"),
        "{missing}"
    );
}

async fn a_guard_of_the_service_reports_its_own_reason(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("GET /refusing").await;
    assert_eq!(response.summary(), (401, None));
    let problem: Value = response.json();
    assert_eq!(problem["type"], "urn:rocket_tx:problem:refused");
    assert_eq!(problem["detail"], "this token is not known");
    // A handler that can do without the guard is not rolled back by its refusal.
    let response = stage.send("POST /refusing/option").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["without the guard"]);
}

async fn a_read_is_not_outstanding_and_a_body_may_stream_from_it(backend: Backend) {
    let stage = stage(backend).await;
    stage
        .databases
        .execute(In::Main, "INSERT INTO notes (text) VALUES ('one')")
        .await;
    let response = stage.send("GET /stream").await;
    assert_eq!(response.summary(), (200, None));
    assert_eq!(response.body, "1 1 1 ");
    for _ in 0..10 {
        assert_eq!(stage.send("GET /count").await.summary(), (200, None));
    }
    assert_eq!(
        stage.send("GET /pooled").await.body,
        "1",
        "the guard of rocket_db_pools works too"
    );
}

async fn sqlx_transactions_work_on_a_read(backend: Backend) {
    let stage = stage(backend).await;
    // Alternating, and more often than there are connections, so that each is used for both.
    for _ in 0..10 {
        assert_eq!(stage.send("GET /own").await.summary(), (200, None));
        assert_eq!(
            stage.send("GET /read-only").await.summary(),
            (200, Some("committed"))
        );
    }
}

async fn an_unused_begin_does_nothing(backend: Backend) {
    let stage = stage(backend).await;
    assert_eq!(stage.send("POST /idle").await.summary(), (201, None));
    assert_eq!(stage.outstanding(), []);
}

async fn isolation_is_set_by_the_type(backend: Backend) {
    let stage = stage(backend).await;
    assert_eq!(stage.send("GET /level").await.body, "serializable");

    let response = stage.send("POST /isolation/plain").await;
    assert_eq!(response.summary(), (500, Some("rolled-back")));
    let problem: Value = response.json();
    assert_eq!(problem["type"], "urn:rocket_tx:problem:weaker");
    assert_eq!(stage.notes().await, [""; 0]);

    let response = stage.send("POST /isolation/serializable").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(stage.notes().await, ["plain", "serializable"]);
}

async fn a_repeatable_read_transaction_has_one_snapshot(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("GET /view").await;
    assert_eq!(
        response.summary(),
        (200, Some("committed")),
        "{}",
        response.body
    );
    assert_eq!(response.body, "0 0");
    assert_eq!(stage.send("GET /count").await.body, "1");
}

on_each_backend!(
    a_write_through_a_read_fails_at_the_database,
    an_error_of_the_database_names_the_mend,
    a_guard_of_the_service_reports_its_own_reason,
    a_read_is_not_outstanding_and_a_body_may_stream_from_it,
    sqlx_transactions_work_on_a_read,
    an_unused_begin_does_nothing,
    isolation_is_set_by_the_type,
    a_repeatable_read_transaction_has_one_snapshot,
);
