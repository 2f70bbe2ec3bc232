//! A custom resource: a file that exists if, and only if, its row in the database exists.
//!
//!     cargo run --package rocket_tx --example custom_resource
//!     curl -i -T README.md http://127.0.0.1:8000/files/readme.md   # 201: row and file are stored
//!     curl -i -T README.md http://127.0.0.1:8000/files/readme.md   # 409: nothing changes
//!     ls data/files

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use rocket::data::Capped;
use rocket::fs::TempFile;
use rocket::http::Status;
use rocket::tokio::fs;
use rocket::{launch, put, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::tx::SettleContext;
use rocket_tx::{Begin, Error, Outstanding, Resource, Settlement, problem_catchers};

#[derive(Database)]
#[database("notes")]
struct Notes(SqlitePool);

/// An uploaded file. It has a temporary name in the same folder until the request is committed.
///
/// If the process is killed between the database's commit and the rename, the row exists, but the
/// file still has its temporary name. If your service cannot accept that, store the temporary name
/// in the database too, and rename such files at the next launch.
struct NewFile {
    temporary: PathBuf,
    place: PathBuf,
}

#[rocket::async_trait]
impl Resource for NewFile {
    fn name(&self) -> Cow<'_, str> {
        "file".into()
    }

    /// The last step in which a resource can refuse the commit. Every check that can fail belongs
    /// here.
    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        let file = fs::File::open(&self.temporary).await.map_err(refused)?;
        file.sync_all().await.map_err(refused)
    }

    /// Called after the databases have committed.
    async fn commit(&mut self) -> Result<(), Error> {
        fs::rename(&self.temporary, &self.place)
            .await
            .map_err(refused)
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        fs::remove_file(&self.temporary).await.map_err(refused)
    }
}

fn refused(error: io::Error) -> Error {
    let reason = format!("the file cannot be stored: {}", error.kind());
    Error::refused(Status::InsufficientStorage, reason)
}

#[put("/files/<name>", data = "<body>")]
async fn upload(
    name: &str,
    mut body: Capped<TempFile<'_>>,
    outstanding: &Outstanding,
    notes: Begin<Notes>,
) -> Result<Status, Error> {
    if !body.is_complete() {
        return Ok(Status::PayloadTooLarge);
    }
    if name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Ok(Status::UnprocessableEntity);
    }
    let folder = Path::new("data/files");
    fs::create_dir_all(folder).await.map_err(refused)?;
    let file = NewFile {
        temporary: folder.join(format!(".{}", fastrand::u64(..))),
        place: folder.join(name),
    };
    body.persist_to(&file.temporary).await.map_err(refused)?;
    // From here on, settlement renames or removes the file, whatever happens below.
    outstanding.join(file)?;

    let mut tx = notes.begin().await?;
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM notes WHERE text = $1")
        .bind(name)
        .fetch_one(&mut tx)
        .await?;
    sqlx::query("INSERT INTO notes (text) VALUES ($1)")
        .bind(name)
        .execute(&mut tx)
        .await?;
    match known {
        0 => Ok(Status::Created),
        _ => Ok(Status::Conflict),
    }
}

#[launch]
fn rocket() -> _ {
    let migrations = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/notes"));
    let figment = rocket::Config::figment()
        .merge(("databases.notes.url", "sqlite:data/files.db"))
        .merge(("limits.file", "10MiB"));
    rocket::custom(figment)
        .attach(db::init::<Notes>().migrations(migrations))
        .attach(Settlement::new())
        .mount("/", routes![upload])
        .register("/", problem_catchers())
}
