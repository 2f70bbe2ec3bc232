//! Migrations are applied completely or not at all, once, and only if they match those applied
//! before.

use std::sync::Arc;

use rocket::{Build, Rocket};
use rocket_tx::db::{self, Migrations};
use rocket_tx::sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::SqlSafeStr;

use super::refused;
use crate::support::launch::{self, Launched};
use crate::support::{Backend, Databases, In, Main, Service, stage};

const TABLES: &str = "CREATE TABLE parents (id BIGINT PRIMARY KEY)";

/// A migration whose second statement fails, after the first has changed the schema.
const BROKEN: &str = "CREATE TABLE children (id BIGINT); INSERT INTO nowhere (id) VALUES (1)";

const CORRECTED: &str = "CREATE TABLE children (id BIGINT)";

fn service(
    databases: &Databases,
    migrations: &[&'static str],
    settings: &[(&str, &str)],
) -> Rocket<Build> {
    let migrator = || {
        let migrations = (1..).zip(migrations).map(|(version, sql)| {
            let sql = sql.into_sql_str();
            Migration::new(version, "test".into(), MigrationType::Simple, sql, false)
        });
        Migrator::with_migrations(migrations.collect())
    };
    let migrations = Migrations::new().sqlite(migrator()).postgres(migrator());
    rocket::custom(stage::figment(databases, settings))
        .attach(db::init::<Main>().migrations(migrations))
}

async fn tables(databases: &Databases) -> Vec<String> {
    let tables = match databases.backend(In::Main) {
        Backend::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
        Backend::Postgres => {
            "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        }
    };
    databases.texts(In::Main, tables).await
}

async fn a_failed_migration_leaves_nothing_behind_and_is_reported(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    databases
        .execute(In::Main, "INSERT INTO notes (text) VALUES ('before')")
        .await;
    let before = tables(&databases).await;

    let log = launch::refused(service(&databases, &[TABLES, BROKEN], &[])).await;
    let remaining = match backend {
        Backend::Sqlite => "nothing was changed",
        Backend::Postgres => "the failed migration changed nothing, those before it remain applied",
    };
    for text in [
        "`databases.main`",
        "migration 2",
        "nowhere",
        remaining,
        "correct the migration or the database and start again",
    ] {
        assert!(log.contains(text), "{text:?} is missing from\n{log}");
    }
    let after = tables(&databases).await;
    match backend {
        Backend::Sqlite => assert_eq!(after, before),
        Backend::Postgres => {
            assert!(after.contains(&"parents".to_owned()));
            assert!(!after.contains(&"children".to_owned()));
        }
    }
    assert_eq!(databases.notes(In::Main).await, ["before"]);

    // The corrected migration succeeds on the same database.
    let corrected = service(&databases, &[TABLES, CORRECTED], &[]);
    Launched::new(corrected).await.close().await;
    let tables = tables(&databases).await;
    assert!(tables.contains(&"parents".to_owned()) && tables.contains(&"children".to_owned()));
    assert_eq!(databases.notes(In::Main).await, ["before"]);
}

async fn a_second_start_keeps_all_data(backend: Backend) {
    let service = Service::start(backend).await;
    assert_eq!(service.new_todo("kept", "").await.status, 201);
    let databases = Arc::clone(&service.databases);
    service.stop().await;

    let service = Service::on(databases, &[]).await;
    assert!(service.get("/todos").await.body.contains("kept"));
    assert_eq!(service.new_todo("another", "").await.status, 201);
    service.stop().await;
}

async fn a_migration_that_was_changed_after_it_was_applied_stops_the_launch(backend: Backend) {
    let service = Service::start(backend).await;
    assert_eq!(service.new_todo("kept", "").await.status, 201);
    let databases = Arc::clone(&service.databases);
    service.stop().await;

    databases
        .execute(In::Main, r"UPDATE _sqlx_migrations SET checksum = '\x00'")
        .await;
    let reason = "migration 1 was previously applied but has been modified";
    refused(&databases, &[], &["migrations", reason]).await;
    let kept = databases.texts(In::Main, "SELECT title FROM todos").await;
    assert_eq!(kept, ["kept"]);
}

/// This happens when an old version of the service starts on the database of a new version.
async fn a_migration_that_the_service_does_not_know_stops_the_launch(backend: Backend) {
    let service = Service::start(backend).await;
    let databases = Arc::clone(&service.databases);
    service.stop().await;

    let newer = r"INSERT INTO _sqlx_migrations
                  (version, description, success, checksum, execution_time)
                  VALUES (99, 'newer', TRUE, '\x00', 0)";
    databases.execute(In::Main, newer).await;
    let reason = "migration 99 was previously applied but is missing";
    refused(&databases, &[], &["migrations", reason]).await;
}

on_each_backend!(
    a_failed_migration_leaves_nothing_behind_and_is_reported,
    a_second_start_keeps_all_data,
    a_migration_that_was_changed_after_it_was_applied_stops_the_launch,
    a_migration_that_the_service_does_not_know_stops_the_launch,
);

mod of_long_duration {
    mod postgres {
        use super::super::*;

        #[rocket::async_test]
        async fn a_migration_may_take_longer_than_a_request() {
            let databases = Databases::new(Backend::Postgres).await;
            let settings = [("databases.main.statement_timeout", "\"200ms\"")];
            let slow = service(&databases, &["SELECT pg_sleep(1)"], &settings);
            Launched::new(slow).await.close().await;
        }
    }
}
