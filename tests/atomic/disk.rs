//! A decision that is late on the decider's disk.

use super::servers::{REQUIRED, SHORT, Servers, titles};
use super::*;
use crate::durability::disk::Disk;
use crate::support::{Break, eventually};

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

/// The disk of the decider fails when its COMMIT writes, after the participant has prepared. What is
/// reported is what is stored.
#[rocket::async_test]
async fn a_file_whose_commit_fails_is_queried() {
    /// The second failure is that of the first query.
    const MENDED: &str = "mended";
    const QUERIED: &str = "the decision to commit got no reply; querying it";

    let servers = Servers::of(Pair::MainOnFile).await;
    let disk = Disk::of(&servers.databases);
    let service = disk.service(&servers.databases, &[REQUIRED, SHORT]).await;
    let mut stored = Vec::new();
    for (title, order, is_stored, is_queried) in [
        ("0", "write -wal eio", false, true),
        (MENDED, "write -wal eio 2", false, true),
        ("1", "write -wal enospc", false, false),
        ("2", "write -wal stuck", true, true),
        ("3", "fdatasync -wal eio", true, false),
        ("4", "fdatasync -wal stuck", true, false),
        ("5", "", true, false),
    ] {
        let queries = service.log().matches(QUERIED).count();
        let prepare = (In::Audit, "PREPARE TRANSACTION", Break::HoldReply);
        let response = servers.post_into(prepare, &service, title).await;
        disk.order(order);
        servers.at(In::Audit).proxy.deliver();
        let response = response.await.unwrap();
        disk.mend();
        servers.nothing_is_prepared(In::Audit).await;
        if is_stored {
            stored.push(title);
        }
        let both = titles(&servers.databases).await;
        assert_eq!(both, [&*stored, &*stored], "{order}: {response:?}");
        match response.summary() {
            (201, Some("committed")) => assert!(is_stored, "{order}: {response:?}"),
            (503, Some("rolled-back")) => assert!(!is_stored, "{order}: {response:?}"),
            (500, Some("unknown")) => assert!(!["5", MENDED].contains(&title), "{response:?}"),
            _ => panic!("{order}: {response:?}"),
        }
        let queries = service.log().matches(QUERIED).count() - queries;
        assert_eq!(queries, usize::from(is_queried), "{order}");
    }
}

/// The COMMIT of the decider gets no reply in its share of `settle_timeout`. The disk works again
/// while the service queries the decision.
#[rocket::async_test]
async fn a_file_that_replies_to_the_query_tells_the_outcome() {
    // A quarter of it is left for the query.
    const LONG: (&str, &str) = ("ROCKET_SETTLE_TIMEOUT", "\"8s\"");

    let servers = Servers::of(Pair::MainOnFile).await;
    let disk = Disk::of(&servers.databases);
    let service = disk.service(&servers.databases, &[REQUIRED, LONG]).await;
    let prepare = (In::Audit, "PREPARE TRANSACTION", Break::HoldReply);
    let response = servers.post_into(prepare, &service, "late").await;
    disk.order("write -wal stuck");
    servers.at(In::Audit).proxy.deliver();
    eventually("the decision is queried", async || {
        service.log().contains("querying it")
    })
    .await;
    disk.mend();
    let response = response.await.unwrap();
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(titles(&servers.databases).await, [["late"]; 2]);
    assert_eq!(prepared(&servers.databases, In::Audit).await, [""; 0]);
}
