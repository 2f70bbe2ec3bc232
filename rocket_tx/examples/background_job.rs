//! A background job: every few seconds it deletes old notes, in a transaction of its own.
//!
//!     cargo run --package rocket_tx --example background_job
//!     curl -i -d 'buy milk' http://127.0.0.1:8000/notes    # 201
//!     curl http://127.0.0.1:8000/notes                     # the note, until the job deletes it
//!
//! The job writes beside the requests: on SQLite it queues for the writer as they do. Shutdown waits
//! for its transaction.

use std::time::Duration;

use rocket::fairing::AdHoc;
use rocket::http::Status;
use rocket::tokio::{self, select, time};
use rocket::{Shutdown, get, launch, post, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::{Begin, Error, Read, Settlement, problem_catchers};

#[derive(Database)]
#[database("notes")]
struct Notes(SqlitePool);

#[post("/notes", data = "<text>")]
async fn add(text: &str, notes: Begin<Notes>) -> Result<Status, Error> {
    let mut tx = notes.begin().await?;
    sqlx::query("INSERT INTO notes (text) VALUES ($1)")
        .bind(text)
        .execute(&mut tx)
        .await?;
    Ok(Status::Created)
}

#[get("/notes")]
async fn list(mut read: Read<Notes>) -> Result<String, Error> {
    let notes: Vec<String> = sqlx::query_scalar("SELECT text FROM notes")
        .fetch_all(&mut read)
        .await?;
    Ok(notes.join("\n") + "\n")
}

/// Deletes the oldest notes, and returns how many there were.
async fn delete_oldest(notes: &SqlitePool) -> Result<u64, Error> {
    notes
        .transaction(async |mut tx| {
            let deleted =
                sqlx::query("DELETE FROM notes WHERE rowid IN (SELECT min(rowid) FROM notes)")
                    .execute(&mut tx)
                    .await?;
            Ok(deleted.rows_affected())
        })
        .await
}

async fn run(notes: SqlitePool, mut shutdown: Shutdown) {
    let mut ticks = time::interval(Duration::from_secs(5));
    loop {
        select! {
            _ = &mut shutdown => return,
            _ = ticks.tick() => {}
        }
        match delete_oldest(&notes).await {
            Ok(deleted) => println!("the job has deleted {deleted} notes"),
            Err(error) => eprintln!("the job has failed, and nothing was changed: {error}"),
        }
    }
}

#[launch]
fn rocket() -> _ {
    let migrations = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/notes"));
    let url = ("databases.notes.url", "sqlite:data/jobs.db"); // or in Rocket.toml
    rocket::custom(rocket::Config::figment().merge(url))
        .attach(db::init::<Notes>().migrations(migrations))
        .attach(Settlement::new())
        .attach(AdHoc::on_liftoff("Job", |rocket| {
            Box::pin(async move {
                if let Some(notes) = Notes::fetch(rocket) {
                    tokio::spawn(run(SqlitePool::clone(notes), rocket.shutdown()));
                }
            })
        }))
        .mount("/", routes![add, list])
        .register("/", problem_catchers())
}
