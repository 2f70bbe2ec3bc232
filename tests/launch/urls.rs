//! The URL of a database must name the backend of its pool, and migrations must be for this backend.

use std::path::Path;

use rocket::figment::Figment;
use rocket::{Build, Config, Rocket};
use rocket_db_pools::Database;
use rocket_tx::db::{self, Migrations, PostgresPool, SqlitePool, UrlPool};
use rocket_tx_aggregates::aggregate;

use crate::support::launch::{logged, refused};
use crate::support::{Backend, Databases};

#[derive(Database)]
#[database("main")]
struct Typed(SqlitePool);

#[derive(Database)]
#[database("main")]
struct Server(PostgresPool);

#[derive(Database)]
#[database("main")]
struct ByUrl(UrlPool);

fn service(url: &str) -> Rocket<Build> {
    let figment = Figment::from(Config::debug_default())
        .merge(("log_level", "off"))
        .merge(("databases.main.url", url));
    rocket::custom(figment)
}

/// Asserts that the service launches with a SQLite file at `file`, and returns its log.
async fn launched(rocket: Rocket<Build>, file: &Path) -> String {
    let (result, log) = logged(rocket.ignite()).await;
    assert!(result.is_ok(), "{log}");
    assert!(file.is_file(), "{} does not exist", file.display());
    log
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn a_typed_pool_refuses_a_foreign_scheme() {
        for (url, scheme) in [
            ("postgres://localhost/x", "`postgres:`"),
            ("postgresql://user:secret@localhost/x", "`postgresql:`"),
            ("POSTGRES://localhost/x", "`postgres:`"),
            ("mysql://localhost/x", "`mysql:`"),
            ("file:main.db", "`file:`"),
        ] {
            let log = refused(service(url).attach(db::init::<Typed>())).await;
            for part in [
                "`databases.main`",
                scheme,
                "`SqlitePool`",
                "sqlite:path/to/file.db",
            ] {
                assert!(log.contains(part), "{url}: no {part} in {log}");
            }
            assert!(!log.contains("secret"), "{log}");
        }
    }

    #[rocket::async_test]
    async fn a_typed_pool_opens_paths_and_sqlite_urls() {
        let folder = tempfile::tempdir().unwrap();
        for (number, prefix) in ["", "sqlite:", "sqlite://", "SQLITE:"].iter().enumerate() {
            let file = folder.path().join(format!("{number}.db"));
            let url = format!("{prefix}{}", file.display());
            launched(service(&url).attach(db::init::<Typed>()), &file).await;
        }
    }

    #[rocket::async_test]
    async fn the_scheme_of_a_url_pool_may_be_in_upper_case() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("main.db");
        let url = format!("SQLite:{}", file.display());
        launched(service(&url).attach(db::init::<ByUrl>()), &file).await;
    }

    #[rocket::async_test]
    async fn migrations_for_the_other_backend_alone_are_warned_about() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("main.db");
        let migrations =
            || Migrations::new().postgres(sqlx::migrate!("rocket_tx/examples/migrations/notes"));
        let url = format!("sqlite:{}", file.display());
        let only_other = service(&url).attach(db::init::<ByUrl>().migrations(migrations()));
        let log = launched(only_other, &file).await;
        assert!(log.contains("only for Postgres"), "{log}");
        assert!(log.contains(".sqlite(sqlx::migrate!(..))"), "{log}");
        assert!(log.contains("database=\"main\""), "{log}");

        let both = migrations().sqlite(sqlx::migrate!("rocket_tx/examples/migrations/notes"));
        let both = service(&url).attach(db::init::<ByUrl>().migrations(both));
        let log = launched(both, &file).await;
        assert!(!log.contains("WARN"), "{log}");
    }

    #[rocket::async_test]
    async fn a_database_that_is_attached_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().join("main.db");
        let rocket = service(&url.display().to_string())
            .attach(db::init::<Typed>())
            .attach(db::init::<Typed>());
        let log = refused(rocket).await;
        assert!(log.contains("the database `main` twice"), "{log}");
        assert!(log.contains(std::any::type_name::<Typed>()), "{log}");
    }

    #[rocket::async_test]
    async fn aggregates_that_are_attached_twice_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().join("main.db");
        let rocket = service(&url.display().to_string())
            .attach(db::init::<Typed>())
            .attach(aggregate::init::<Typed>())
            .attach(aggregate::init::<Typed>());
        let log = refused(rocket).await;
        assert!(log.contains("twice; remove one"), "{log}");
        assert!(log.contains("aggregate::init"), "{log}");
    }

    #[rocket::async_test]
    async fn a_database_that_is_not_configured_is_refused_with_the_lines_to_add() {
        let figment = Figment::from(Config::debug_default())
            .merge(("log_level", "off"))
            .merge(("databases.mian.url", "sqlite:x.db"));
        let log = refused(rocket::custom(figment).attach(db::init::<Typed>())).await;
        for part in ["only for `mian`", "[default.databases.main]", "url ="] {
            assert!(log.contains(part), "no {part} in {log}");
        }
    }
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn a_typed_pool_refuses_a_foreign_scheme() {
        for (url, scheme) in [
            ("sqlite:data/main.db", "`sqlite:`"),
            ("SQLITE://data/main.db", "`sqlite:`"),
            ("mysql://localhost/x", "`mysql:`"),
        ] {
            let log = refused(service(url).attach(db::init::<Server>())).await;
            for part in [
                "`databases.main`",
                scheme,
                "`PostgresPool`",
                "postgres://user@host",
            ] {
                assert!(log.contains(part), "{url}: no {part} in {log}");
            }
        }
    }

    #[rocket::async_test]
    async fn the_scheme_may_be_in_upper_case_and_migrations_for_sqlite_alone_are_warned_about() {
        let databases = Databases::new(Backend::Postgres).await;
        let url = databases.main.replacen("postgres", "POSTGRES", 1);
        let migrations =
            Migrations::new().sqlite(sqlx::migrate!("rocket_tx/examples/migrations/notes"));
        let rocket = service(&url).attach(db::init::<Server>().migrations(migrations));
        let (result, log) = logged(rocket.ignite()).await;
        assert!(result.is_ok(), "{log}");
        assert!(log.contains("only for SQLite"), "{log}");
    }
}
