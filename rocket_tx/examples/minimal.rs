//! The smallest complete service.
//!
//!     cargo run --package rocket_tx --example minimal
//!     curl -i -d 'buy milk' http://127.0.0.1:8000/notes    # 201: the note is stored
//!     curl -i -d 'fly home' http://127.0.0.1:8000/notes    # 422: the insert is rolled back
//!     curl http://127.0.0.1:8000/notes

use std::time::Duration;

use rocket::http::Status;
use rocket::{get, launch, post, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::{Begin, Error, Read, Settlement, problem_catchers, tx};

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
    match text.contains("fly") {
        true => Ok(Status::UnprocessableEntity),
        false => Ok(Status::Created),
    }
}

#[get("/notes")]
async fn list(mut read: Read<Notes>) -> Result<String, Error> {
    let notes: Vec<String> = sqlx::query_scalar("SELECT text FROM notes")
        .fetch_all(&mut read)
        .await?;
    Ok(notes.join("\n") + "\n")
}

#[launch]
fn rocket() -> _ {
    let migrations = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/notes"));
    let url = ("databases.notes.url", "sqlite:data/notes.db"); // or in Rocket.toml
    rocket::custom(rocket::Config::figment().merge(url))
        .attach(db::init::<Notes>().migrations(migrations))
        .attach(Settlement::new())
        .mount(
            "/",
            tx::bounded(routes![add, list], Duration::from_secs(45)),
        )
        .register("/", problem_catchers())
}
