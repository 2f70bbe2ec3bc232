//! A participant fails over to a synchronous standby.

use super::servers::{Servers, decisions, make_decisions_old};
use super::*;
use crate::support::{Break, eventually};

/// The address of the participant points to the standby before that is promoted. A standby lists no
/// prepared transactions.
#[rocket::async_test]
async fn what_was_prepared_on_the_primary_is_committed_on_the_promoted_standby() {
    const COMMIT: &str = "COMMIT PREPARED";
    // PREPARE TRANSACTION waits for the standby, which is slow on a busy machine.
    const LONG: (&str, &str) = ("ROCKET_SETTLE_TIMEOUT", "\"20s\"");

    for pair in [Pair::Servers, Pair::MainOnFile] {
        let mut servers = Servers::of(pair).await;
        let service = servers.service(LONG).await;
        let mut standby = servers.at(In::Audit).cluster.standby().await;
        replicates_synchronously(&servers.at(In::Audit).cluster).await;
        let commit = (In::Audit, COMMIT, Break::Stall);
        let response = servers.post_into(commit, &service, "prepared").await;
        servers.at_mut(In::Audit).cluster.kill().await;
        servers.at(In::Audit).proxy.lead_to(&standby.url("audit"));
        let response = response.await.unwrap();
        assert_eq!(response.summary(), (201, Some("committed")), "{pair:?}");
        assert_eq!(response.header("transaction-pending"), Some("audit"));

        make_decisions_old(&servers.databases, In::Main).await;
        let mut stored = 1;
        eventually("three passes were refused by the standby", async || {
            stored = decisions(&servers.databases, In::Main).await.len();
            stored == 0 || service.log().matches("during recovery").count() >= 3
        })
        .await;
        assert_eq!(stored, 1, "the decision was forgotten");
        standby.promote().await;
        let names = "SELECT gid FROM pg_prepared_xacts";
        eventually("nothing is prepared", async || {
            let mut admin = standby.admin().await;
            let names = sqlx::query_scalar(names).fetch_all(&mut admin).await;
            let names: Vec<String> = names.unwrap();
            names.is_empty()
        })
        .await;
        let main = servers.databases.texts(In::Main, "SELECT title FROM todos");
        assert_eq!(main.await, ["prepared"], "{pair:?}");
        let mut audit = PgConnection::connect(&standby.url("audit")).await.unwrap();
        let subjects = sqlx::query_scalar("SELECT subject FROM audit");
        let subjects: Vec<String> = subjects.fetch_all(&mut audit).await.unwrap();
        assert_eq!(subjects.len(), 1, "{pair:?}");
        eventually("the decision is forgotten", async || {
            decisions(&servers.databases, In::Main).await.is_empty()
        })
        .await;
        servers.each_works(&[&service]).await;
        service.stop().await;
    }
}

/// Makes each commit, and each PREPARE TRANSACTION, of `primary` wait for its standby.
async fn replicates_synchronously(primary: &Cluster) {
    let mut admin = primary.admin().await;
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "SELECT pg_reload_conf()",
    ] {
        sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
    }
    eventually("the standby is synchronous", async || {
        let state = "SELECT sync_state FROM pg_stat_replication";
        let state = sqlx::query_scalar(state).fetch_one(&mut admin).await;
        let state: String = state.unwrap();
        state == "sync"
    })
    .await;
}
