//! Conflicts that the server knows at the end of the closure, and that no statement has reported.

use std::sync::atomic::{AtomicUsize, Ordering};

use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::tx::{Mode, ReadWrite};
use rocket_tx::{Begin, Error, Serializable, Settlement, with_backend};
use sqlx::{Connection as _, Executor, PgConnection};

use crate::support::stage::run;
use crate::support::{Backend, Databases, In, Main, Stage};

/// The URL of the database, and how many attempts there were.
struct Other(String, AtomicUsize);

const COUNT: &str = "SELECT count(*) FROM pairs";

/// Deletes a row if the other one stays. During the first attempt, somebody else deletes the other
/// one in the same way, and commits.
async fn leave<M: Mode>(main: &Begin<Main, M>, other: &Other) -> Result<Status, Error> {
    let work = main.retrying(async |mut tx| {
        let count: i64 = with_backend!(tx, |db| sqlx::query_scalar(COUNT).fetch_one(db).await?);
        if count < 2 {
            return Ok(Status::Conflict);
        }
        run(&mut tx, "DELETE FROM pairs WHERE id = 1").await?;
        if other.1.fetch_add(1, Ordering::SeqCst) == 0 {
            let mut connection = PgConnection::connect(&other.0).await?;
            let skew = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pairs; \
                        DELETE FROM pairs WHERE id = 2; COMMIT";
            connection.execute(sqlx::raw_sql(skew)).await?;
        }
        Ok(Status::NoContent)
    });
    work.await
}

#[post("/serializable")]
async fn serializable(
    main: Begin<Main, Serializable>,
    other: &State<Other>,
) -> Result<Status, Error> {
    leave(&main, other).await
}

#[post("/configured")]
async fn configured(main: Begin<Main, ReadWrite>, other: &State<Other>) -> Result<Status, Error> {
    leave(&main, other).await
}

async fn begins_anew(path: &str, setting: Option<&'static str>) {
    let databases = Databases::with_tables(Backend::Postgres).await;
    databases
        .execute(In::Main, "INSERT INTO pairs VALUES (1, 1), (2, 2)")
        .await;
    if let Some(setting) = setting {
        databases.execute(In::Main, setting).await;
    }
    let other = Other(databases.main.clone(), AtomicUsize::new(0));
    let stage = Stage::on(databases, &[], |rocket| {
        rocket
            .manage(other)
            .mount("/", routes![serializable, configured])
            .attach(Settlement::new())
    })
    .await;
    let response = stage.send(&format!("POST /{path}")).await;
    assert_eq!(
        response.summary(),
        (409, Some("rolled-back")),
        "{response:?}"
    );
    let left = stage
        .databases
        .texts(In::Main, "SELECT id::text FROM pairs")
        .await;
    assert_eq!(left, ["1"]);
}

#[rocket::async_test]
async fn a_conflict_that_is_known_at_the_end_begins_the_work_anew() {
    begins_anew("serializable", None).await;
}

#[rocket::async_test]
async fn also_where_the_server_is_configured_to_serializable() {
    const SETTING: &str = "DO $$ BEGIN EXECUTE format( \
        'ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$";

    begins_anew("configured", Some(SETTING)).await;
}
