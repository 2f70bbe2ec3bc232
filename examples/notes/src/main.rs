mod author;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rocket::http::Status;
use rocket::serde::json::Json;
use rocket::{delete, get, info, launch, post, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database}; // the derive needs both names
use rocket_tx::{Begin, Error, Read, Settlement, Tx, problem_catchers, tx};
use serde::{Deserialize, Serialize};

use author::Author;

#[derive(Database)]
#[database("main")] // databases.main in Rocket.toml
struct Main(SqlitePool); // or PostgresPool, or UrlPool: the URL decides

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

#[derive(Serialize, sqlx::FromRow)]
struct Note {
    id: i64,
    text: String,
}

#[post("/notes", data = "<new>")]
async fn add(new: Json<NewNote>, main: Begin<Main>) -> Result<Json<Note>, Error> {
    let mut tx = main.begin().await?; // a handler with a body begins the transaction itself
    let note = sqlx::query_as("INSERT INTO notes (text) VALUES ($1) RETURNING id, text")
        .bind(&new.text)
        .fetch_one(&mut tx)
        .await?;
    if new.text.contains("secret") {
        let reason = "this is no place for secrets";
        return Err(Error::refused(Status::UnprocessableEntity, reason)); // rolls back
    }
    Ok(Json(note))
}

#[delete("/notes/<id>")]
async fn remove(id: i64, author: Author, mut tx: Tx<Main>) -> Result<Status, Error> {
    info!("{} removes note {id}", author.name);
    let delete = sqlx::query("DELETE FROM notes WHERE id = $1").bind(id);
    match delete.execute(&mut tx).await?.rows_affected() {
        0 => Err(Error::NotFound),
        _ => Ok(Status::NoContent),
    }
}

#[get("/notes")]
async fn list(mut read: Read<Main>) -> Result<Json<Vec<Note>>, Error> {
    let notes = sqlx::query_as("SELECT id, text FROM notes ORDER BY id");
    Ok(Json(notes.fetch_all(&mut read).await?))
}

#[launch]
fn rocket() -> _ {
    let routes = routes![add, remove, list];
    rocket::build()
        .attach(db::init::<Main>().migrations(Migrations::new().sqlite(sqlx::migrate!())))
        .attach(Settlement::new())
        .mount("/", tx::bounded(routes, Duration::from_secs(45))) // a dead network ends in a 503
        .register("/", problem_catchers())
}
