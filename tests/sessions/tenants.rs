//! Tenants with a schema each. Prepared statements and types that the driver caches for one schema
//! are wrong for another.

use super::*;
use crate::support::In;

/// A type that exists in each schema.
struct Mood(&'static str);

impl sqlx::Type<sqlx::Postgres> for Mood {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        sqlx::postgres::PgTypeInfo::with_name("mood")
    }
}

impl<'q> sqlx::Encode<'q, sqlx::Postgres> for Mood {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(sqlx::encode::IsNull::No)
    }
}

async fn choose(db: &mut PgConnection, tenant: &str) -> sqlx::Result<()> {
    let sql = format!("SET LOCAL search_path = {tenant}, public");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(db)
        .await
        .map(drop)
}

#[post("/moods/<tenant>")]
async fn mood(tenant: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    let db = postgres(&mut tx);
    choose(db, tenant).await?;
    let insert = sqlx::query("INSERT INTO moods (mood) VALUES ($1)");
    insert.bind(Mood("good")).execute(db).await?;
    Ok(Status::Created)
}

#[get("/things/<tenant>")]
async fn things(tenant: &str, mut tx: Tx<Main>) -> Result<String, Error> {
    let db = postgres(&mut tx);
    choose(db, tenant).await?;
    let rows = sqlx::query("SELECT * FROM things").fetch_all(db).await?;
    Ok(rows.len().to_string())
}

const SCHEMAS: &str = "\
    CREATE SCHEMA a; CREATE TYPE a.mood AS ENUM ('good'); CREATE TABLE a.moods (mood a.mood); \
    CREATE SCHEMA b; CREATE TYPE b.mood AS ENUM ('good'); CREATE TABLE b.moods (mood b.mood); \
    CREATE TABLE a.things (id int); CREATE TABLE b.things (id int, more text); \
    INSERT INTO b.things VALUES (1), (2)";

/// All requests share one session.
#[rocket::async_test]
async fn a_session_without_a_statement_cache_serves_every_schema() {
    let settings = [
        ("databases.main.max_connections", "1"),
        ("databases.main.statement_cache", "0"),
    ];
    let stage = Stage::with(Backend::Postgres, &settings, |rocket| {
        rocket
            .mount("/", routes![mood, things])
            .attach(Settlement::new())
    })
    .await;
    stage.databases.execute(In::Main, SCHEMAS).await;
    for _ in 0..2 {
        for (tenant, count) in [("a", "0"), ("b", "2")] {
            let response = stage.send(&format!("POST /moods/{tenant}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{tenant}: {response:?}"
            );
            let response = stage.send(&format!("GET /things/{tenant}")).await;
            assert_eq!((response.status, &*response.body), (200, count), "{tenant}");
        }
    }
    stage.close().await;
}
