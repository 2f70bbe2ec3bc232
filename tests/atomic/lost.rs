//! A decider that never comes back. An operator finishes what is prepared, with the statements of
//! `docs/atomic.md`.

use super::servers::{PATIENT, SHORT, Servers, in_doubt, lists};
use super::*;
use crate::support::{Break, eventually};

const MANUAL: &str = include_str!("../../docs/atomic.md");

/// Returns the statements in the SQL block of the manual that begins with `start`.
fn block(start: &str) -> Vec<String> {
    let blocks = MANUAL.split("```sql\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let block = blocks.into_iter().find(|block| block.starts_with(start));
    let statements = block.expect("the manual has this block").split(';');
    let statements = statements.map(|sql| sql.trim().to_owned());
    statements.filter(|sql| !sql.is_empty()).collect()
}

/// Returns a statement that the manual mentions, with its placeholder replaced.
fn filled(sql: &str, placeholder: &str, value: &str) -> String {
    assert!(MANUAL.contains(sql), "the manual does not mention {sql}");
    assert!(sql.contains(placeholder), "{sql} has no {placeholder}");
    sql.replace(placeholder, value)
}

/// Returns the first column of each row.
async fn texts(connection: &mut PgConnection, sql: &str) -> Vec<String> {
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: String) {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection);
    done.await.unwrap();
}

/// The id of the decision in the name of a prepared transaction.
fn decision(name: &str) -> &str {
    name.split(':').nth(2).unwrap()
}

/// Nobody knows whether it has decided. The operator chooses.
#[rocket::async_test]
async fn what_a_lost_decider_has_not_told_stays_in_doubt_until_an_operator_ends_it() {
    for (finish, stored) in [
        ("ROLLBACK PREPARED '<gid>'", 0),
        ("COMMIT PREPARED '<gid>'", 1),
    ] {
        let mut servers = Servers::of(Pair::Servers).await;
        let service = servers.service(SHORT).await;
        let decide = (In::Main, "COMMIT", Break::Stall);
        let response = servers.post_into(decide, &service, "in-doubt").await;
        servers.at_mut(In::Main).cluster.kill().await;
        let response = response.await.unwrap();
        assert_eq!(response.summary(), (500, Some("unknown")));

        let names = prepared(&servers.databases, In::Audit).await;
        assert_eq!(names.len(), 1);
        let failed = "is in doubt and cannot be finished";
        eventually("three passes could not finish it", async || {
            service.log().matches(failed).count() >= 3
        })
        .await;
        lists(&service, &names[0], In::Audit, In::Main).await;
        assert_eq!(in_doubt(&service).await.len(), 1);
        let metrics = service.get("/metrics").await.body;
        assert!(metrics.contains("rocket_tx_in_doubt 1"), "{metrics}");
        assert_eq!(prepared(&servers.databases, In::Audit).await, names);
        service.stop().await;

        let list = &block("SELECT gid")[0];
        let mut audit = servers.databases.postgres(In::Audit).await;
        assert_eq!(texts(&mut audit, list).await, names);
        execute(&mut audit, filled(finish, "<gid>", &names[0])).await;
        assert_eq!(texts(&mut audit, list).await, [""; 0]);
        let subjects = texts(&mut audit, "SELECT subject FROM audit").await;
        assert_eq!(subjects.len(), stored, "{finish}");
        // No lock is left.
        execute(
            &mut audit,
            "BEGIN; LOCK TABLE audit NOWAIT; COMMIT".to_owned(),
        )
        .await;
    }
}

/// The decisions are on a standby, where the operator looks them up. It becomes the decider.
#[rocket::async_test]
async fn the_decisions_of_a_lost_decider_are_found_on_its_standby() {
    let mut servers = Servers::of(Pair::Servers).await;
    let mut standby = None;
    for (title, crash) in [
        ("committed", "crash=between-commits"),
        ("aborted", "crash=before-decision"),
    ] {
        let mut service = servers.service(PATIENT).await;
        if standby.is_none() {
            standby = Some(servers.at(In::Main).cluster.standby().await);
        }
        service.crash(title, crash).await;
    }
    let mut standby = standby.unwrap();
    servers.at(In::Main).cluster.wait_for(&standby).await;
    servers.at_mut(In::Main).cluster.kill().await;

    let list = &block("SELECT gid")[0];
    let look_up = &block("SELECT decision")[0];
    let mut audit = servers.databases.postgres(In::Audit).await;
    let mut main = PgConnection::connect(&standby.url("main")).await.unwrap();
    let names = texts(&mut audit, list).await;
    assert_eq!(names.len(), 2);
    let mut decided = Vec::new();
    for name in &names {
        let look_up = filled(look_up, "<decision>", decision(name));
        let decision = texts(&mut main, &look_up).await;
        let finish = match &*decision {
            [decision] if decision == "commit" => "COMMIT PREPARED '<gid>'",
            [] => "ROLLBACK PREPARED '<gid>'",
            _ => panic!("{decision:?}"),
        };
        execute(&mut audit, filled(finish, "<gid>", name)).await;
        decided.push(finish);
    }
    assert_eq!(
        decided,
        ["COMMIT PREPARED '<gid>'", "ROLLBACK PREPARED '<gid>'"]
    );
    assert_eq!(texts(&mut audit, list).await, [""; 0]);

    standby.promote().await;
    servers.at(In::Main).proxy.lead_to(&standby.url("main"));
    let service = servers.service(SHORT).await;
    let main = texts(&mut main, "SELECT title FROM todos").await;
    let audit = texts(&mut audit, "SELECT subject FROM audit").await;
    assert_eq!((&*main, audit.len()), (&["committed".to_owned()][..], 1));
    servers.each_works(&[&service]).await;
    service.stop().await;
}
