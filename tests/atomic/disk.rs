//! A decision that is late on the decider's disk.

use super::*;
use crate::durability::disk::Disk;
use crate::support::eventually;

/// The commit of the decider is not on its disk in time, so the participant stays prepared. Then a
/// pass of recovery does not reach the participant. The pass must not delete the decision.
#[rocket::async_test]
async fn a_decision_that_is_late_on_the_disk_is_kept_for_its_participant() {
    let databases = Arc::new(Pair::MainOnFile.databases().await);
    let disk = Disk::of(&databases);
    let service = disk
        .service(&databases, &[("ROCKET_SETTLE_TIMEOUT", "\"1s\"")])
        .await;
    assert_eq!(service.new_todo("before", "").await.status, 201);
    let name = "SELECT current_database()::text";
    let name = databases.texts(In::Audit, name).await.remove(0);
    let url = std::env::var("TEST_POSTGRES_URL").unwrap();
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let mut allow = async |yes: bool| {
        let sql = format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS {yes}");
        let altered = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut admin);
        altered.await.unwrap();
    };
    // Requests have a connection already, and recovery opens one.
    allow(false).await;
    disk.order("fdatasync -wal stuck");
    let response = service.new_todo("late", "").await;
    assert_eq!(response.summary(), (500, Some("unknown")));
    disk.mend();
    // The second pass begins after the first one has ended.
    eventually("two passes have not reached the participant", async || {
        let log = service.log();
        log.matches("could not look for prepared transactions")
            .count()
            >= 2
    })
    .await;
    let count = "SELECT count(*) FROM pg_prepared_xacts WHERE database = $1";
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let count = sqlx::query_scalar(count).bind(&name);
    let count: i64 = count.fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, 1);
    allow(true).await;
    eventually("nothing is prepared", async || {
        prepared(&databases, In::Audit).await.is_empty()
    })
    .await;
    let todos = databases.texts(In::Main, "SELECT title FROM todos").await;
    let audit = databases
        .texts(In::Audit, "SELECT subject FROM audit")
        .await;
    assert_eq!((todos.len(), audit.len()), (2, 2));
}
