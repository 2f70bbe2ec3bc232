//! Two configured databases must not be the same database: a request that writes to both would
//! wait for itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rocket::{get, routes};
use rocket_db_pools::Database;
use rocket_tx::{Settlement, Tx, db};

use crate::support::launch::refused;
use crate::support::stage::figment;
use crate::support::{Audit, Backend, Databases, In, Main, Service};

/// The service must refuse to launch and name both keys. The migrations of the second database were
/// not applied to the first one.
async fn is_refused(mut databases: Databases, audit: String) {
    databases.audit = audit;
    let (status, log) = Service::refused(&databases, &[]).await;
    assert_eq!(status.code(), Some(1), "{log}");
    let message = "`databases.audit.url` leads to the same database as `databases.main.url`";
    assert!(log.contains(message), "{}: {log}", databases.audit);

    // These are the migrations of `main`, without those of `audit`.
    let migrated = "SELECT description FROM _sqlx_migrations";
    assert_eq!(
        databases.texts(In::Main, migrated).await,
        ["todos", "todo list", "no deferred probe"]
    );
}

#[get("/")]
fn both(_main: Tx<Main>, _audit: Tx<Audit>) {}

/// This holds for each way to attach the databases.
async fn one_database_under_two_names_does_not_launch(backend: Backend) {
    let mut databases = Databases::new(backend).await;
    databases.audit = databases.main.clone();
    let rocket = || rocket::custom(figment(&databases, &[])).mount("/", routes![both]);
    for rocket in [
        rocket()
            .attach(db::init::<Main>())
            .attach(db::init::<Audit>()),
        rocket().attach(Main::init()).attach(Audit::init()),
        rocket().attach(db::init::<Main>()).attach(Audit::init()),
    ] {
        let log = refused(rocket.attach(Settlement::new())).await;
        for name in [
            "`databases.main.url`",
            "`databases.audit.url`",
            "the same database",
        ] {
            assert!(log.contains(name), "{log}");
        }
    }
}

on_each_backend!(one_database_under_two_names_does_not_launch);

mod by_other_spellings {
    use super::*;

    /// Returns the path relative to the working directory, which the service shares with the tests.
    fn relative(path: &Path) -> PathBuf {
        let here = std::env::current_dir().unwrap();
        let up = here.components().skip(1).map(|_| "..");
        up.collect::<PathBuf>()
            .join(path.strip_prefix("/").unwrap())
    }

    mod sqlite {
        use super::*;

        #[rocket::async_test]
        async fn the_same_path_is_refused() {
            let databases = Databases::new(Backend::Sqlite).await;
            let audit = databases.main.replace("sqlite:", "sqlite://");
            is_refused(databases, audit).await;
        }

        #[rocket::async_test]
        async fn a_relative_path_is_recognised() {
            let databases = Databases::new(Backend::Sqlite).await;
            let path = relative(&databases.folder().join("main.db"));
            is_refused(databases, format!("sqlite:{}", path.display())).await;
        }

        #[rocket::async_test]
        async fn a_symbolic_link_is_recognised() {
            let databases = Databases::new(Backend::Sqlite).await;
            let link = databases.folder().join("link.db");
            symlink(databases.folder().join("main.db"), &link).unwrap();
            is_refused(databases, format!("sqlite:{}", link.display())).await;
        }

        #[rocket::async_test]
        async fn a_linked_folder_is_recognised() {
            let databases = Databases::new(Backend::Sqlite).await;
            let link = databases.folder().join("folder");
            symlink(databases.folder(), &link).unwrap();
            is_refused(databases, format!("sqlite:{}/main.db", link.display())).await;
        }

        #[rocket::async_test]
        async fn a_hard_link_is_recognised() {
            let databases = Databases::new(Backend::Sqlite).await;
            databases.execute(In::Main, "CREATE TABLE before (x)").await;
            let link = databases.folder().join("link.db");
            fs::hard_link(databases.folder().join("main.db"), &link).unwrap();
            is_refused(databases, format!("sqlite:{}", link.display())).await;
        }
    }

    mod postgres {
        use super::*;

        #[rocket::async_test]
        async fn another_name_of_the_host_is_recognised() {
            let databases = Databases::new(Backend::Postgres).await;
            let mut url: reqwest::Url = databases.main.parse().unwrap();
            let other = match url.host_str() {
                Some("127.0.0.1") => "localhost",
                Some("localhost") => "127.0.0.1",
                host => panic!("the tests' Postgres must be on this host, not on {host:?}"),
            };
            url.set_host(Some(other)).unwrap();
            is_refused(databases, url.into()).await;
        }

        #[rocket::async_test]
        async fn another_application_name_does_not_make_it_another_database() {
            let databases = Databases::new(Backend::Postgres).await;
            let audit = format!("{}?application_name=audit", databases.main);
            is_refused(databases, audit).await;
        }
    }
}
