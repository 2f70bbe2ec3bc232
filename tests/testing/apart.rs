//! Databases for a service that `testing` does not launch.

use rocket::local::asynchronous::Client;

use super::*;
use crate::support::eventually;

/// Returns the number of connections to the database at this URL. On SQLite the last one removes
/// the journal.
async fn connections(url: &str) -> i64 {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return std::path::Path::new(&format!("{path}-wal")).exists().into();
    }
    let server = std::env::var("TEST_POSTGRES_URL").unwrap();
    let mut connection = PgConnection::connect(&server).await.unwrap();
    let (_, name) = url.rsplit_once('/').unwrap();
    sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = $1")
        .bind(name)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

async fn a_service_that_is_launched_otherwise_finds_its_tables(backend: Backend) {
    let configured = figment(&configured(backend, "main"), &configured(backend, "audit"));
    let databases = testing::databases(service(configured)).await;
    let (main, audit) = (databases.url::<Main>(), databases.url::<Audit>());
    for url in [&main, &audit] {
        // A server needs a moment to notice that a client has gone.
        eventually("nothing is connected", async || connections(url).await == 0).await;
    }
    databases
        .execute::<Main>("INSERT INTO notes VALUES ('taken')")
        .await;

    let client = Client::untracked(service(figment(&main, &audit)))
        .await
        .unwrap();
    for (text, status) in [("taken", Status::Conflict), ("new", Status::Created)] {
        let response = client.post(format!("/notes/{text}")).dispatch().await;
        assert_eq!(response.status(), status, "{text}");
    }
    drop(client);
    drop(databases);
    for url in [main, audit] {
        assert!(!exists(&url).await, "{url}");
    }
}

#[rocket::async_test]
async fn a_launch_that_would_fail_is_explained() {
    let url = configured(Backend::Sqlite, "main");
    let message = panic_of(testing::databases(service(figment(&url, &url)))).await;
    let reason = "`url` is also `databases.main.url`";
    assert!(message.contains(reason), "{message}");
}

on_each_backend!(a_service_that_is_launched_otherwise_finds_its_tables);
