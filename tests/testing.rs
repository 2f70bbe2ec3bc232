//! `rocket_tx::testing`: a test gets databases of its own.

mod apart;
mod left_over;
mod reuse;
mod shared_server;

use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;
use rocket::figment::Figment;
use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use rocket::http::Status;
use rocket::tokio::{join, sync::oneshot};
use rocket::{Build, Rocket, State, post, routes};
use rocket_db_pools::Database;
use rocket_tx::db::{self, Migrations, PostgresPool, UrlPool};
use rocket_tx::testing::{self, App};
use rocket_tx::{Error, Outstanding, Settlement, Tx, problem_catchers, with_backend};
use sqlx::{Connection, PgConnection};

use crate::support::databases::{configured, nowhere};
use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, Main};

#[derive(Database)]
#[database("ledger")]
struct Ledger(PostgresPool);

/// The messages of hooks.
#[derive(Default)]
struct Messages(std::sync::Arc<Mutex<Vec<String>>>);

/// Keeps the transactions that a handler leaks.
#[derive(Default)]
struct Leaked(Mutex<Option<oneshot::Sender<()>>>);

#[post("/notes/<text>")]
async fn write(text: String, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    note(&mut main, &text).await?;
    note(&mut audit, &text).await?;
    Ok(Status::Created)
}

#[post("/later/<text>")]
fn later(
    text: String,
    outstanding: &Outstanding,
    messages: &State<Messages>,
    _main: Tx<Main>,
) -> Result<(), Error> {
    let messages = messages.0.clone();
    outstanding.after_commit(async move {
        // Gives the test a chance to look too early.
        for _ in 0..100 {
            rocket::tokio::task::yield_now().await;
        }
        messages.lock().push(text);
    })
}

#[post("/leak")]
fn leak(main: Tx<Main>, leaked: &State<Leaked>) {
    let (end, ended) = oneshot::channel::<()>();
    *leaked.0.lock() = Some(end);
    rocket::tokio::spawn(async move {
        let _ends_with_the_test = ended.await;
        drop(main);
    });
}

fn notes() -> Migrations {
    Migrations::new()
        .sqlite(sqlx::migrate!("tests/testing/migrations"))
        .postgres(sqlx::migrate!("tests/testing/migrations"))
}

fn figment(main: &str, audit: &str) -> Figment {
    Figment::from(rocket::Config::debug_default())
        .merge(("log_level", "off"))
        .merge(("databases.main.url", main))
        .merge(("databases.audit.url", audit))
        .merge(("databases.ledger.url", audit))
}

fn service(figment: Figment) -> Rocket<Build> {
    rocket::custom(figment)
        .attach(db::init::<Main>().migrations(notes()))
        .attach(db::init::<Audit>().migrations(notes()))
        .attach(Settlement::new())
        .manage(Messages::default())
        .manage(Leaked::default())
        .mount("/", routes![write, later, leak])
        .register("/", problem_catchers())
}

/// Launches a service with its databases on `backend`.
async fn app(backend: Backend) -> App {
    let figment = figment(&configured(backend, "main"), &configured(backend, "audit"));
    testing::launch(service(figment)).await
}

async fn stored<D: Database<Pool = UrlPool>>(app: &App) -> Vec<String> {
    let mut reader = app.read::<D>().await;
    let notes = with_backend!(reader, |db| {
        sqlx::query_scalar("SELECT text FROM notes ORDER BY text")
            .fetch_all(db)
            .await
    });
    notes.unwrap()
}

/// Returns whether the database at this URL exists.
async fn exists(url: &str) -> bool {
    match url.strip_prefix("sqlite:") {
        Some(path) => std::path::Path::new(path).exists(),
        None => {
            let server = std::env::var("TEST_POSTGRES_URL").unwrap();
            let mut connection = PgConnection::connect(&server).await.unwrap();
            let (_, name) = url.rsplit_once('/').unwrap();
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM pg_database WHERE datname = $1")
                    .bind(name)
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            count == 1
        }
    }
}

/// Returns the message of the panic of `work`.
async fn panic_of<T>(work: impl Future<Output = T>) -> String {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(_) => panic!("it did not panic"),
        Err(payload) => *payload.downcast::<String>().unwrap(),
    }
}

async fn each_test_has_databases_of_its_own(backend: Backend) {
    let one_test = async |number: usize| {
        let app = app(backend).await;
        let path = format!("/notes/{number}");
        let response = app.post(path).dispatch().await;
        assert_eq!(response.status(), Status::Created);
        assert_eq!(stored::<Main>(&app).await, [number.to_string()]);
        assert_eq!(stored::<Audit>(&app).await, [number.to_string()]);
        app.assert_nothing_outstanding();
        (app.url::<Main>(), app.url::<Audit>())
    };
    let urls = join_all((0..8).map(one_test)).await;
    for (main, audit) in urls {
        assert!(!exists(&main).await, "{main}");
        assert!(!exists(&audit).await, "{audit}");
    }
}

#[rocket::async_test]
async fn the_configured_database_is_not_written_to() {
    let existing = Databases::new(Backend::Postgres).await;
    let (main, audit) = (&existing.main, &existing.audit);
    let app = testing::launch(service(figment(main, audit))).await;
    let status = app.post("/notes/a").dispatch().await.status();
    assert_eq!(status, Status::Created);
    let mut connection = PgConnection::connect(main).await.unwrap();
    let tables: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(tables, 0);
    drop(app);

    drop(self::app(Backend::Sqlite).await);
    assert!(!std::path::Path::new(&nowhere()).exists());
}

/// The initializer of rocket_db_pools does not know about tests.
#[rocket::async_test]
async fn another_initializer_does_not_open_the_configured_database() {
    let url = configured(Backend::Sqlite, "main");
    let rocket = rocket::custom(figment(&url, &url)).attach(Main::init());
    panic_of(testing::launch(rocket)).await;
    assert!(!std::path::Path::new(&nowhere()).exists());
}

async fn a_panic_drops_the_databases(backend: Backend) {
    let (sender, url) = oneshot::channel();
    let test = rocket::tokio::spawn(async move {
        let app = app(backend).await;
        app.post("/notes/a").dispatch().await;
        // An open transaction, and an idle connection.
        app.post("/leak").dispatch().await;
        sender.send(app.url::<Main>()).unwrap();
        panic!("in the test");
    });
    assert!(test.await.unwrap_err().is_panic());
    let url = url.await.unwrap();
    assert!(!exists(&url).await, "{url}");
}

async fn statements_prepare_a_test(backend: Backend) {
    let app = app(backend).await;
    let two = "INSERT INTO notes VALUES ('one'); INSERT INTO notes VALUES ('two')";
    app.execute::<Main>(two).await;
    assert_eq!(stored::<Main>(&app).await, ["one", "two"]);
    let refused = panic_of(app.execute::<Main>("INSERT INTO nothing VALUES (1)")).await;
    assert!(
        refused.contains("a statement in the database `main` failed"),
        "{refused}"
    );
}

async fn hooks_are_awaited(backend: Backend) {
    let app = app(backend).await;
    let messages = app.rocket().state::<Messages>().unwrap().0.clone();
    // Responses that are still there do not matter.
    let mut responses = Vec::new();
    for number in 0..20 {
        responses.push(app.post(format!("/later/{number}")).dispatch().await);
        app.hooks_have_run().await;
        assert_eq!(messages.lock().len(), number + 1);
    }
    app.assert_nothing_outstanding();
}

async fn concurrent_requests_conflict(backend: Backend) {
    conflicting_requests(backend).await;
}

/// Both requests run in one task. Neither waits for itself.
async fn concurrent_requests_of_one_task_conflict(backend: Backend) {
    rocket::tokio::spawn(conflicting_requests(backend))
        .await
        .unwrap();
}

async fn conflicting_requests(backend: Backend) {
    let app = app(backend).await;
    let (one, two) = join!(
        app.post("/notes/same").dispatch(),
        app.post("/notes/same").dispatch()
    );
    let mut statuses = [one.status().code, two.status().code];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
    assert_eq!(stored::<Audit>(&app).await, ["same"]);
}

async fn what_is_outstanding_is_listed(backend: Backend) {
    let app = app(backend).await;
    app.assert_nothing_outstanding();
    app.post("/leak").dispatch().await;
    let panic = catch_unwind(AssertUnwindSafe(|| app.assert_nothing_outstanding()));
    let message = *panic.unwrap_err().downcast::<String>().unwrap();
    for part in [
        "something is outstanding:\n- `main`",
        "`Tx<Main>` in `leak`",
        "a spawned task",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

/// A SQLite file behind a pool by URL, and a Postgres database behind a typed pool.
#[rocket::async_test]
async fn backends_can_be_mixed() {
    let (main, ledger) = (
        configured(Backend::Sqlite, "main"),
        configured(Backend::Postgres, "ledger"),
    );
    let rocket = rocket::custom(figment(&main, &ledger))
        .attach(db::init::<Main>().migrations(notes()))
        .attach(db::init::<Ledger>().migrations(notes()))
        .attach(Settlement::new())
        .mount("/", routes![mixed]);
    let app = testing::launch(rocket).await;
    for (path, status) in [("/mixed/201", 201), ("/mixed/404", 404)] {
        assert_eq!(app.post(path).dispatch().await.status().code, status);
    }
    assert_eq!(stored::<Main>(&app).await, ["201"]);
    let mut ledger = app.read::<Ledger>().await;
    let stored: Vec<String> = sqlx::query_scalar("SELECT text FROM notes")
        .fetch_all(&mut *ledger)
        .await
        .unwrap();
    assert_eq!(stored, ["201"]);
}

#[post("/mixed/<code>")]
async fn mixed(code: u16, mut main: Tx<Main>, mut ledger: Tx<Ledger>) -> Result<Status, Error> {
    note(&mut main, &code.to_string()).await?;
    sqlx::query("INSERT INTO notes (text) VALUES ($1)")
        .bind(code.to_string())
        .execute(&mut *ledger)
        .await?;
    Ok(Status::new(code))
}

#[rocket::async_test]
async fn a_server_that_does_not_reply_is_named() {
    // Port 1 is reserved, and nothing listens on it.
    let url = "postgres://somebody:secret@127.0.0.1:1/main";
    let message = panic_of(testing::launch(service(figment(url, url)))).await;
    for part in [
        "`main`",
        "cannot connect to 127.0.0.1:1",
        "start the server",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("secret"), "{message}");
}

#[rocket::async_test]
async fn a_role_that_may_not_create_databases_is_named() {
    let server = std::env::var("TEST_POSTGRES_URL").unwrap();
    let mut admin = PgConnection::connect(&server).await.unwrap();
    let role = format!("poor_{}", std::process::id());
    let create = format!("CREATE ROLE {role} LOGIN");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create))
        .execute(&mut admin)
        .await
        .unwrap();
    let (_, address) = server.rsplit_once('@').unwrap();
    let url = format!("postgres://{role}@{address}");
    let message = panic_of(testing::launch(service(figment(&url, &url)))).await;
    let advice = format!("run `ALTER ROLE \"{role}\" CREATEDB`");
    assert!(message.contains(&advice), "{message}");
}

/// In production, a request that writes to both would wait for itself.
#[rocket::async_test]
async fn one_url_for_two_databases_is_refused() {
    let url = configured(Backend::Sqlite, "main");
    let message = panic_of(testing::launch(service(figment(&url, &url)))).await;
    assert!(
        message.contains("`url` is also `databases.main.url`"),
        "{message}"
    );
}

on_each_backend!(
    each_test_has_databases_of_its_own,
    a_panic_drops_the_databases,
    statements_prepare_a_test,
    hooks_are_awaited,
    concurrent_requests_conflict,
    concurrent_requests_of_one_task_conflict,
    what_is_outstanding_is_listed,
);
