//! A server that other tests, other roles and other people use at the same time.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use rocket::futures::future::{Either, select};
use sqlx::{AssertSqlSafe, Executor};

use super::left_over::TestProcess;
use super::*;

fn server() -> String {
    std::env::var("TEST_POSTGRES_URL").unwrap()
}

async fn admin() -> PgConnection {
    PgConnection::connect(&server()).await.unwrap()
}

/// Creates a role. Returns the URL of the server with it.
async fn role(name: &str, options: &str) -> String {
    let role = format!("{name}_{}", std::process::id());
    let create = format!("CREATE ROLE {role} LOGIN CREATEDB {options}");
    admin().await.execute(AssertSqlSafe(create)).await.unwrap();
    let server = server();
    let (_, address) = server.rsplit_once('@').unwrap();
    format!("postgres://{role}@{address}")
}

/// A service with one database, whose template no other test uses.
fn alone<D: rocket_tx::db::TransactionalDatabase>(url: &str) -> Rocket<Build> {
    rocket::custom(figment(url, url))
        .attach(db::init::<D>().migrations(notes()))
        .attach(Settlement::new())
}

#[rocket::async_test]
async fn each_role_has_templates_of_its_own() {
    #[derive(Database)]
    #[database("main")]
    struct Owned(PostgresPool);

    let other = role("maker", "").await;
    for url in [server(), other] {
        let app = testing::launch(alone::<Owned>(&url)).await;
        app.execute::<Owned>("INSERT INTO notes VALUES ('a')").await;
    }
}

async fn templates() -> BTreeSet<String> {
    let names =
        "SELECT datname::text FROM pg_database WHERE datname LIKE 'rocket\\_tx\\_template\\_%'";
    let names: Vec<String> = sqlx::query_scalar(names)
        .fetch_all(&mut admin().await)
        .await
        .unwrap();
    names.into_iter().collect()
}

/// The server copies no database that somebody is connected to.
#[rocket::async_test]
async fn somebody_may_look_into_a_template() {
    #[derive(Database)]
    #[database("main")]
    struct Inspected(PostgresPool);

    let before = templates().await;
    drop(testing::launch(alone::<Inspected>(&server())).await);
    let server = server();
    let (address, _) = server.rsplit_once('/').unwrap();
    let mut looking = Vec::new();
    // Other tests may create templates meanwhile.
    for new in templates().await.difference(&before) {
        looking.push(PgConnection::connect(&format!("{address}/{new}")).await);
    }
    assert!(!looking.is_empty());
    let app = testing::launch(alone::<Inspected>(&server)).await;
    app.execute::<Inspected>("INSERT INTO notes VALUES ('a')")
        .await;
}

/// A process of another build of the same program may be copying its template.
#[rocket::async_test]
async fn a_template_is_not_dropped_while_it_is_used() {
    #[derive(Database)]
    #[database("main")]
    struct Rebuilt(PostgresPool);

    let before = templates().await;
    drop(testing::launch(alone::<Rebuilt>(&server())).await);
    let after = templates().await;
    let name = after.difference(&before).next().unwrap();
    let (name, key) = name.rsplit_once('_').unwrap();
    let (name, _build) = name.rsplit_once('_').unwrap();
    let other = format!("{name}_00000000_{key}");
    let mut hasher = DefaultHasher::new();
    other.hash(&mut hasher);
    let hash = hasher.finish();
    let lock = ((hash >> 32) as u32 ^ hash as u32).cast_signed();
    let server = server();
    let (address, _) = server.rsplit_once('/').unwrap();
    // The test process locks in this database, because that of its URL does not exist.
    let mut copying = PgConnection::connect(&format!("{address}/postgres"))
        .await
        .unwrap();
    let lock = format!("SELECT pg_advisory_lock_shared({}, {lock})", 0x7274_7874);
    copying.execute(AssertSqlSafe(lock)).await.unwrap();
    let create = format!("CREATE DATABASE {other}");
    copying.execute(AssertSqlSafe(create)).await.unwrap();
    let url = format!("{address}/{other}");
    TestProcess::start().end();
    assert!(exists(&url).await);
    copying.close().await.unwrap();
    TestProcess::start().end();
    assert!(!exists(&url).await);
}

/// Other tests have all connections for a moment.
#[rocket::async_test]
async fn a_test_waits_for_a_connection() {
    #[derive(Database)]
    #[database("main")]
    struct Crowded(PostgresPool);

    const LIMIT: usize = 8;

    let url = role("few", &format!("CONNECTION LIMIT {LIMIT}")).await;
    let mut others = Vec::new();
    for _ in 0..LIMIT {
        others.push(PgConnection::connect(&url).await.unwrap());
    }
    let launch = Box::pin(testing::launch(alone::<Crowded>(&url)));
    let pause = Box::pin(rocket::tokio::time::sleep(Duration::from_millis(500)));
    let Either::Right((_, launch)) = select(launch, pause).await else {
        panic!("it was launched without a connection");
    };
    for other in others {
        other.close().await.unwrap();
    }
    let app = launch.await;
    app.execute::<Crowded>("INSERT INTO notes VALUES ('a')")
        .await;
}
