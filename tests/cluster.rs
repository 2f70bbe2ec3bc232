//! The cluster of `support::cluster` behaves like a real one that crashes: it loses transactions
//! that were not flushed, and no others.

use std::time::Duration;

use rocket::tokio::time::timeout;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{Cluster, eventually};

async fn note(url: &str, text: &str, durable: bool) {
    let mut db = PgConnection::connect(url).await.unwrap();
    let durable = if durable { "on" } else { "off" };
    let set = format!("SET synchronous_commit TO {durable}");
    db.execute(sqlx::AssertSqlSafe(set)).await.unwrap();
    sqlx::query("INSERT INTO notes VALUES ($1)")
        .bind(text)
        .execute(&mut db)
        .await
        .unwrap();
}

async fn notes(url: &str) -> Vec<String> {
    let mut db = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT text FROM notes ORDER BY text")
        .fetch_all(&mut db)
        .await
        .unwrap()
}

async fn with_notes(cluster: &Cluster) -> String {
    let url = cluster.create_database("main").await;
    let mut db = PgConnection::connect(&url).await.unwrap();
    db.execute("CREATE TABLE notes (text TEXT)").await.unwrap();
    url
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn a_crash_loses_unflushed_transactions() {
        // Autovacuum would flush the log too, with its own commits.
        let mut cluster = Cluster::start_with("autovacuum = off\n").await;
        let url = with_notes(&cluster).await;
        for killed in [false, true] {
            note(&url, "flushed", true).await;
            cluster.signal_processes("STOP", |title| title.contains("walwriter"));
            note(&url, "not flushed", false).await;
            assert_eq!(notes(&url).await, ["flushed", "not flushed"]);
            match killed {
                true => cluster.kill().await,
                false => cluster.crash().await,
            }
            assert!(PgConnection::connect(&url).await.is_err());
            cluster.restart().await;
            assert_eq!(notes(&url).await, ["flushed"]);
            let mut db = PgConnection::connect(&url).await.unwrap();
            db.execute("DELETE FROM notes").await.unwrap();
        }
        note(&url, "not flushed", false).await;
        cluster.restart().await;
        assert_eq!(notes(&url).await, ["not flushed"], "a normal shutdown");
    }

    #[rocket::async_test]
    async fn a_promoted_standby_lacks_unsent_transactions() {
        let mut primary = Cluster::start().await;
        let url = with_notes(&primary).await;
        let mut standby = primary.standby().await;
        note(&url, "sent", true).await;
        primary.wait_for(&standby).await;
        primary.stop_replication();
        note(&url, "not sent", true).await;
        primary.kill().await;
        standby.promote().await;
        assert_ne!(standby.port(), primary.port());
        let url = standby.url("main");
        assert_eq!(notes(&url).await, ["sent"]);
        note(&url, "written after", true).await;
        assert_eq!(notes(&url).await, ["sent", "written after"]);
    }

    #[rocket::async_test]
    async fn a_frozen_server_keeps_connections_and_does_not_reply() {
        let cluster = Cluster::start().await;
        let mut db = cluster.admin().await;
        for whole in [true, false] {
            match whole {
                true => cluster.freeze(),
                false => cluster.signal_backends("STOP"),
            }
            {
                let response = db.fetch_one("SELECT 1");
                rocket::tokio::pin!(response);
                let soon = Duration::from_millis(300);
                assert!(timeout(soon, &mut response).await.is_err());
                cluster.thaw();
                response.await.unwrap();
            }
        }
    }

    #[rocket::async_test]
    async fn the_clock_can_be_set_while_the_server_runs() {
        async fn hours_off(cluster: &Cluster) -> f64 {
            let off = "SELECT (extract(epoch FROM clock_timestamp()) - $1)::float8 / 3600";
            let now = std::time::SystemTime::now();
            let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            let off: f64 = sqlx::query_scalar(off)
                .bind(now.as_secs_f64())
                .fetch_one(&mut cluster.admin().await)
                .await
                .unwrap();
            off.round()
        }

        let mut cluster = Cluster::start().await;
        assert_eq!(hours_off(&cluster).await, 0.0);
        cluster.set_clock("-1h");
        cluster.restart().await;
        assert_eq!(hours_off(&cluster).await, -1.0);
        cluster.set_clock("+2h");
        eventually("the clock is set", async || {
            hours_off(&cluster).await == 2.0
        })
        .await;
    }
}
