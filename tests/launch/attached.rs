//! The fairings that the launch code must attach.

use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::request::{FromRequest, Outcome};
use rocket::{Build, Request, Rocket, Route, get, post, routes};
use rocket_db_pools::Database;
use rocket_tx::tx::Serializable;
use rocket_tx::{Begin, Commit, Error, Outstanding, Read, Settlement, Tx, db, problem_catchers};

use crate::support::launch::{Launched, logged, refused};
use crate::support::stage::{figment, note};
use crate::support::{Audit, Backend, Databases, In, Main};

#[get("/tx")]
fn tx(_guard: Tx<Main>) {}

#[get("/strict")]
fn strict(_guard: Tx<Main, Serializable>) {}

#[get("/optional")]
fn optional(_guard: Option<Tx<Main>>) {}

#[get("/begin")]
fn begin(_guard: Begin<Main>) {}

#[get("/read")]
fn read(_guard: Read<Main>) {}

#[get("/outstanding")]
fn outstanding(_guard: &Outstanding) {}

/// The name of each guard, and a route that has only this guard.
fn guards_of_main() -> [(&'static str, Vec<Route>); 5] {
    [
        ("Tx", routes![tx]),
        ("Tx, Serializable", routes![strict]),
        ("Option<Tx>", routes![optional]),
        ("Begin", routes![begin]),
        ("Read", routes![read]),
    ]
}

async fn a_guard_without_settlement_stops_the_launch(backend: Backend) {
    let databases = Databases::new(backend).await;
    let alone = ("&Outstanding", routes![outstanding]);
    for (guard, routes) in guards_of_main().into_iter().chain([alone]) {
        let rocket = rocket::custom(figment(&databases, &[]))
            .attach(db::init::<Main>())
            .mount("/", routes);
        let log = refused(rocket).await;
        let line = ".attach(rocket_tx::Settlement::new())";
        assert!(log.contains(line), "{guard}: {log}");
    }
}

async fn a_guard_without_its_database_stops_the_launch(backend: Backend) {
    let databases = Databases::new(backend).await;
    for (guard, routes) in guards_of_main() {
        // Attaching another database is not enough.
        let rocket = rocket::custom(figment(&databases, &[]))
            .attach(db::init::<Audit>())
            .attach(Settlement::new())
            .mount("/", routes);
        let log = refused(rocket).await;
        let line = format!(
            ".attach(rocket_tx::db::init::<{}>())",
            std::any::type_name::<Main>()
        );
        assert!(log.contains(&line), "{guard}: {log}");
    }
}

/// Guards that use one of our guards inside. Rocket checks the guards in a handler's signature, not
/// guards inside guards. These log the error that they get.
macro_rules! hidden {
    ($($name:ident hides $guard:ty),+ $(,)?) => {
        $(
            struct $name;

            #[rocket::async_trait]
            impl<'r> FromRequest<'r> for $name {
                type Error = Error;

                async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
                    let outcome = request.guard::<$guard>().await;
                    if let Outcome::Error((_, error)) = &outcome {
                        tracing::error!("{error}");
                    }
                    outcome.map(|_| Self)
                }
            }
        )+
    };
}

hidden!(
    HiddenTx hides Tx<Main>,
    HiddenBegin hides Begin<Main>,
    HiddenRead hides Read<Main>,
    HiddenOutstanding hides &Outstanding,
);

#[get("/tx")]
fn hidden_tx(_guard: HiddenTx) {}

#[get("/begin")]
fn hidden_begin(_guard: HiddenBegin) {}

#[get("/read")]
fn hidden_read(_guard: HiddenRead) {}

#[get("/outstanding")]
fn hidden_outstanding(_guard: HiddenOutstanding) {}

/// Each request with a hidden guard must get a 500, and the logged error must contain `line`.
async fn hidden_guards_refuse(rocket: Rocket<Build>, paths: &[&str], line: &str) {
    let routes = routes![hidden_tx, hidden_begin, hidden_read, hidden_outstanding];
    let rocket = rocket.mount("/", routes).register("/", problem_catchers());
    let client = Client::untracked(rocket).await.unwrap();
    for path in paths {
        let (response, log) = logged(client.get(*path).dispatch()).await;
        assert_eq!(response.status(), Status::InternalServerError, "{path}");
        assert!(log.contains(line), "{path}: {log}");
    }
}

async fn a_hidden_guard_refuses_without_settlement(backend: Backend) {
    let databases = Databases::new(backend).await;
    let rocket = rocket::custom(figment(&databases, &[])).attach(db::init::<Main>());
    hidden_guards_refuse(
        rocket,
        &["/tx", "/begin", "/read", "/outstanding"],
        ".attach(rocket_tx::Settlement::new())",
    )
    .await;
}

async fn a_hidden_guard_refuses_without_its_database(backend: Backend) {
    let databases = Databases::new(backend).await;
    let rocket = rocket::custom(figment(&databases, &[])).attach(Settlement::new());
    let line = format!(
        ".attach(rocket_tx::db::init::<{}>())",
        std::any::type_name::<Main>()
    );
    hidden_guards_refuse(rocket, &["/tx", "/begin", "/read"], &line).await;
}

#[post("/write/<code>")]
async fn write(code: u16, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<(Status, ()), Error> {
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    Ok((Status::new(code), ()))
}

#[post("/begun")]
async fn begun(main: Begin<Main>) -> Result<Commit<()>, Error> {
    note(&mut *main.begin().await?, "begun").await?;
    Ok(Commit(()))
}

#[get("/count")]
async fn count(mut main: Read<Main>) -> Result<String, Error> {
    let count: i64 = rocket_tx::with_backend!(main, |db| {
        sqlx::query_scalar("SELECT count(*) FROM notes")
            .fetch_one(db)
            .await?
    });
    Ok(count.to_string())
}

async fn guards_work(databases: Databases, rocket: Rocket<Build>) {
    let rocket = rocket
        .attach(Settlement::new())
        .mount("/", routes![write, begun, count])
        .register("/", problem_catchers());
    let service = Launched::new(rocket).await;
    let lost = service.http.send("POST /write/502").await;
    assert_eq!(lost.summary(), (502, Some("rolled-back")), "{lost:?}");
    let kept = service.http.send("POST /write/200").await;
    assert_eq!(kept.summary(), (200, Some("committed")), "{kept:?}");
    let begun = service.http.send("POST /begun").await;
    assert_eq!(begun.summary(), (200, Some("committed")), "{begun:?}");
    let count = service.http.send("GET /count").await;
    assert_eq!((count.status, &*count.body), (200, "2"), "{count:?}");

    assert_eq!(databases.notes(In::Main).await, ["begun", "written"]);
    assert_eq!(databases.notes(In::Audit).await, ["written"]);
    service.close().await;
}

async fn databases_of_our_initializer_serve_guards(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let rocket = rocket::custom(figment(&databases, &[]))
        .attach(db::init::<Main>())
        .attach(db::init::<Audit>());
    guards_work(databases, rocket).await;
}

async fn databases_of_rocket_db_pools_initializer_serve_guards(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let rocket = rocket::custom(figment(&databases, &[]))
        .attach(Main::init())
        .attach(Audit::init());
    guards_work(databases, rocket).await;
}

/// Rocket's sentinels did not see these guards at launch, so the database was not registered then.
async fn hidden_guards_work_with_rocket_db_pools_initializer(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let rocket = rocket::custom(figment(&databases, &[]))
        .attach(Main::init())
        .attach(Settlement::new())
        .mount("/", routes![hidden_tx, hidden_begin, hidden_read]);
    let client = Client::untracked(rocket).await.unwrap();
    for path in ["/tx", "/begin", "/read"] {
        let response = client.get(path).dispatch().await;
        assert_eq!(response.status(), Status::Ok, "{path}");
    }
}

on_each_backend!(
    a_guard_without_settlement_stops_the_launch,
    a_guard_without_its_database_stops_the_launch,
    a_hidden_guard_refuses_without_settlement,
    a_hidden_guard_refuses_without_its_database,
    databases_of_our_initializer_serve_guards,
    databases_of_rocket_db_pools_initializer_serve_guards,
    hidden_guards_work_with_rocket_db_pools_initializer,
);
