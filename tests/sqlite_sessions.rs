//! SQLite connections: nothing that a request does to its connection affects the next request, and
//! the reported outcome is true.

mod disks;
mod keys;
mod leftovers;
mod limits;
mod lookups;
mod queue;
mod shadows;
mod truth;

use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_db_pools::Connection;
use rocket_tx::db::UrlConnection;
use rocket_tx::{Error, Read, Settlement, Tx, with_backend};
use sqlx::SqliteConnection;

use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, HttpResponse, Main, Stage};

fn sqlite(connection: &mut UrlConnection) -> &mut SqliteConnection {
    match connection {
        UrlConnection::Sqlite(session) => session,
        UrlConnection::Postgres(_) => unreachable!("these are tests of SQLite"),
    }
}

/// Runs SQL from the test and ignores its error.
async fn swallow(connection: &mut UrlConnection, sql: String) {
    let _swallowed = with_backend!(connection, |db| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(db)
            .await
            .map(drop)
    });
}

#[post("/run/tx/<status>", data = "<sql>")]
async fn run_in_tx(status: u16, sql: String, mut tx: Tx<Main>) -> (Status, ()) {
    swallow(&mut tx, sql).await;
    (Status::new(status), ())
}

#[post("/run/read/<status>", data = "<sql>")]
async fn run_in_read(status: u16, sql: String, mut read: Read<Main>) -> (Status, ()) {
    swallow(&mut read, sql).await;
    (Status::new(status), ())
}

#[post("/run/connection/<status>", data = "<sql>")]
async fn run_in_connection(
    status: u16,
    sql: String,
    mut connection: Connection<Main>,
) -> (Status, ()) {
    swallow(&mut connection, sql).await;
    (Status::new(status), ())
}

/// Returns, as one text, all state of a connection that a request could have changed.
const STATE: &str = "\
    SELECT (SELECT group_concat(name) FROM pragma_database_list)
        || ' temp=' || (SELECT ifnull(group_concat(name), '') FROM temp.sqlite_schema)
        || ' like=' || ('a' LIKE 'A')
        || ' query_only=' || query_only || ' locking=' || locking_mode
        || ' checks=' || ignore_check_constraints || ' triggers=' || recursive_triggers
        || ' reverse=' || reverse_unordered_selects || ' schema=' || writable_schema
        || ' trusted=' || trusted_schema || ' pages=' || max_page_count
        || ' busy=' || timeout || ' keys=' || foreign_keys || ' synchronous=' || synchronous
        || ' cache=' || cache_size || ' spill=' || cache_spill
        || ' counts=' || count_changes || ' names=' || short_column_names || full_column_names
        || ' collations=' || (SELECT group_concat(name) FROM pragma_collation_list)
    FROM pragma_query_only, pragma_locking_mode('main'), pragma_ignore_check_constraints,
        pragma_recursive_triggers, pragma_reverse_unordered_selects, pragma_writable_schema,
        pragma_trusted_schema, pragma_max_page_count, pragma_busy_timeout, pragma_foreign_keys,
        pragma_synchronous, pragma_cache_size, pragma_cache_spill, pragma_count_changes,
        pragma_short_column_names, pragma_full_column_names";

async fn state_of(connection: &mut UrlConnection) -> Result<String, Error> {
    let state = sqlx::query_scalar(STATE);
    Ok(state.fetch_one(sqlite(connection)).await?)
}

#[get("/state/tx")]
async fn state_of_tx(mut tx: Tx<Main>) -> Result<String, Error> {
    state_of(&mut tx).await
}

#[get("/state/read")]
async fn state_of_read(mut read: Read<Main>) -> Result<String, Error> {
    state_of(&mut read).await
}

#[post("/note/<text>")]
async fn write(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    Ok(Status::Created)
}

#[post("/note-both/<text>")]
async fn write_both(text: &str, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    note(&mut audit, text).await?;
    Ok(Status::Created)
}

#[get("/notes")]
async fn notes(mut read: Read<Main>) -> Result<String, Error> {
    let notes: Vec<String> = sqlx::query_scalar("SELECT text FROM notes ORDER BY text")
        .fetch_all(sqlite(&mut read))
        .await?;
    Ok(notes.join(","))
}

async fn stage() -> Stage {
    stage_on(Databases::with_tables(Backend::Sqlite).await).await
}

/// The stage has one reader, so that each request gets the connection of the request before.
async fn stage_on(databases: Databases) -> Stage {
    let settings = [("databases.main.max_connections", "1")];
    Stage::on(databases, &settings, |rocket| {
        rocket
            .mount(
                "/",
                routes![
                    run_in_tx,
                    run_in_read,
                    run_in_connection,
                    state_of_tx,
                    state_of_read,
                    write,
                    write_both,
                    notes
                ],
            )
            .mount("/", truth::routes())
            .mount("/", leftovers::routes())
            .mount("/", keys::routes())
            .mount("/", disks::routes())
            .attach(Settlement::new())
    })
    .await
}

async fn send_sql(stage: &Stage, path: &str, sql: &str) -> HttpResponse {
    HttpResponse::of(stage.http.request(path).body(sql.to_owned())).await
}
