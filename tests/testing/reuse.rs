//! Templates: migrations run once, and the databases of later tests are copies.

use rocket_tx_aggregates::aggregate;
use rocket_tx_idempotency as idempotency;

use super::*;

/// Returns when each migration ran, in all tables of migrations.
async fn migrated_at(app: &App) -> Vec<String> {
    const TABLES: [&str; 5] = [
        "_sqlx_migrations",
        "_aggregate_events_migrations",
        "_aggregate_locks_migrations",
        "_idempotency_keys_migrations",
        "_rocket_tx_decisions_migrations",
    ];

    let mut all = Vec::new();
    for table in TABLES {
        let mut reader = app.read::<Main>().await;
        let query = format!(
            "SELECT '{table} ' || version || ' ' || CAST(installed_on AS TEXT) || ' ' || execution_time \
             FROM {table} ORDER BY version"
        );
        let rows: sqlx::Result<Vec<String>> = with_backend!(reader, |db| {
            sqlx::query_scalar(sqlx::AssertSqlSafe(query))
                .fetch_all(db)
                .await
        });
        match rows {
            Ok(rows) => all.extend(rows),
            // Two SQLite files commit without stored decisions.
            Err(error) => assert!(
                error
                    .to_string()
                    .contains("no such table: _rocket_tx_decisions")
            ),
        }
    }
    all
}

async fn migrations_run_once(backend: Backend) {
    let launch = async || {
        let figment = figment(&configured(backend, "main"), &configured(backend, "audit"));
        let rocket = service(figment)
            .attach(aggregate::init::<Main>())
            .attach(idempotency::init::<Main>().shared_keys());
        migrated_at(&testing::launch(rocket).await).await
    };
    // Completes the template, if no other test has done so.
    launch().await;
    let second = launch().await;
    let third = launch().await;
    assert_eq!(second, third);
    // SQLite files have decisions only if they commit together with a Postgres database.
    let expected = match backend {
        Backend::Sqlite => 4,
        Backend::Postgres => 6,
    };
    assert!(second.len() >= expected, "{second:?}");
}

/// A migration that fails must not leave half of itself to later tests.
async fn a_failing_migration_is_reported_each_time(backend: Backend) {
    let broken = || {
        let sql = "CREATE TABLE half (id BIGINT); SELECT * FROM missing";
        let migration = sqlx::migrate::Migration::new(
            1,
            "broken".into(),
            sqlx::migrate::MigrationType::Simple,
            sqlx::SqlStr::from_static(sql),
            false,
        );
        sqlx::migrate::Migrator::with_migrations(vec![migration])
    };
    for _ in 0..2 {
        let url = configured(backend, "main");
        let rocket = rocket::custom(figment(&url, &url)).attach(
            db::init::<Main>().migrations(Migrations::new().sqlite(broken()).postgres(broken())),
        );
        let message = panic_of(testing::launch(rocket)).await;
        assert!(message.contains("the migrations failed"), "{message}");
        assert!(message.contains("missing"), "{message}");
    }
}

on_each_backend!(
    migrations_run_once,
    a_failing_migration_is_reported_each_time,
);
