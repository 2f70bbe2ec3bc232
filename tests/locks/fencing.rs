//! The fencing tokens of a key always grow, even after crashes, failovers and clock changes of the
//! server.

use std::collections::HashMap;
use std::time::Duration;

use rocket_tx_aggregates::lock::{Hold, LockError, UrlLockManager};
use sqlx::{Connection, Executor, PgConnection};

use super::manager_on;
use crate::support::{Cluster, eventually};

const MS: Duration = Duration::from_millis(1);
const KEYS: [&str; 3] = ["a", "b", "c"];

/// The greatest fencing token that was seen, for each key.
#[derive(Default)]
struct Seen(HashMap<String, i64>);

impl Seen {
    /// Checks that the token of a new lease is greater than all tokens seen before.
    fn given(&mut self, key: &str, number: i64, context: &str) {
        let before = self.0.insert(key.to_owned(), number);
        assert!(
            before.is_none_or(|before| number > before),
            "{context}: `{key}` has {number} after {before:?}"
        );
    }

    /// Records the tokens in the list of leases.
    async fn listed(&mut self, manager: &UrlLockManager) {
        for row in manager.leases().await.unwrap() {
            let known = self.0.entry(row.key).or_insert(row.fencing_token);
            *known = row.fencing_token.max(*known);
        }
    }

    /// Takes each key a few times. The last leases are taken by a second manager and left
    /// unreleased, as by a process that has ended.
    async fn take(&mut self, manager: &UrlLockManager, url: &str, context: &str) {
        let dying = manager_on(url).await;
        for turn in 0..3 {
            let manager = if turn < 2 { manager } else { &dying };
            for key in KEYS {
                let lease = acquired(manager, key).await;
                self.given(key, lease.fencing_token(), context);
                self.listed(manager).await;
                if turn < 2 {
                    lease.release().await.unwrap();
                } else {
                    std::mem::forget(lease);
                }
            }
        }
    }
}

/// Acquires a lease once the server is reachable. Frees a lease that an ended process has left, as
/// an operator would.
async fn acquired(
    manager: &UrlLockManager,
    key: &str,
) -> rocket_tx_aggregates::lock::Lease<rocket_tx_aggregates::lock::UrlLeases> {
    let mut lease = None;
    eventually("a lease is acquired", async || {
        for row in manager.leases().await.unwrap_or_default() {
            if row.key == key {
                let _ = manager.free(&row.token).await;
            }
        }
        lease = manager.try_acquire(key).await.ok().flatten();
        lease.is_some()
    })
    .await;
    lease.unwrap()
}

/// Stops the WAL writer: from now on only statements that wait for a flush cause one.
fn stop_flushing(cluster: &Cluster) {
    cluster.signal_processes("STOP", |title| title.contains("walwriter"));
}

async fn with_leases(cluster: &Cluster) -> (String, UrlLockManager) {
    let url = cluster.create_database("main").await;
    let manager = manager_on(&url).await;
    manager.migrate().await.unwrap();
    (url, manager)
}

async fn rounds_of_crashes(clock: Option<&str>) {
    let mut cluster = Cluster::start().await;
    if clock.is_some() {
        cluster.set_clock("+0s");
        cluster.restart().await;
    }
    let (url, first) = with_leases(&cluster).await;
    let mut seen = Seen::default();
    for round in 0..8 {
        stop_flushing(&cluster);
        // In turn, a manager that exists since before the crashes and a new one.
        let manager = match round % 2 {
            0 => first.clone(),
            _ => manager_on(&url).await,
        };
        seen.take(&manager, &url, &format!("round {round}")).await;
        match (round % 3, clock) {
            (0, _) => cluster.crash().await,
            (1, _) | (_, Some(_)) => cluster.kill().await,
            // One process of the server is killed, and the server restarts by itself.
            (_, None) => {
                let mut admin = cluster.admin().await;
                cluster.signal_processes("KILL", |title| title.contains("checkpointer"));
                eventually("connections end", async || admin.ping().await.is_err()).await;
                eventually("the server accepts connections again", async || {
                    PgConnection::connect(&url).await.is_ok()
                })
                .await;
                continue;
            }
        }
        if let Some(clock) = clock {
            // The clock is set further back at each start.
            cluster.set_clock(&clock.replace('N', &(round + 1).to_string()));
        }
        cluster.restart().await;
    }
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn a_crash_of_the_server_repeats_no_fencing_token() {
        rounds_of_crashes(None).await;
    }

    #[rocket::async_test]
    async fn a_crash_after_which_the_clock_is_behind_repeats_no_fencing_token() {
        rounds_of_crashes(Some("-Nh")).await;
    }

    #[rocket::async_test]
    async fn a_clock_that_is_set_back_repeats_no_fencing_token() {
        let mut cluster = Cluster::start().await;
        cluster.set_clock("+0s");
        cluster.restart().await;
        let (url, manager) = with_leases(&cluster).await;
        let mut seen = Seen::default();
        for clock in ["+0s", "-1h", "-3h", "+1h", "-1h"] {
            cluster.set_clock(clock);
            seen.take(&manager, &url, clock).await;
        }
    }

    /// The replication is asynchronous: the standby lacks the last writes of the primary.
    #[rocket::async_test]
    async fn a_failover_repeats_no_fencing_token() {
        for (clock, has_the_first) in [("+0s", false), ("+0s", true), ("-1h", true)] {
            let mut primary = Cluster::start().await;
            let (url, manager) = with_leases(&primary).await;
            let mut standby = primary.standby().await;
            standby.set_clock(clock);
            standby.restart().await;
            let mut seen = Seen::default();
            if has_the_first {
                seen.take(&manager, &url, "before the standby lags").await;
            }
            primary.wait_for(&standby).await;
            primary.stop_replication();
            seen.take(&manager, &url, "while the standby lags").await;
            primary.kill().await;
            standby.promote().await;
            let url = standby.url("main");
            let manager = manager_on(&url).await;
            seen.take(&manager, &url, &format!("after the failover, {clock}"))
                .await;
        }
    }

    /// The database is replaced by an older copy with all rows, as pg_dump and pg_restore do.
    #[rocket::async_test]
    async fn a_restored_backup_repeats_no_fencing_token() {
        let cluster = Cluster::start().await;
        let (url, manager) = with_leases(&cluster).await;
        let mut seen = Seen::default();
        seen.take(&manager, &url, "before the backup").await;
        let close = async |manager| {
            drop::<UrlLockManager>(manager);
            let mut admin = cluster.admin().await;
            let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                       WHERE datname = 'main'";
            admin.execute(end).await.unwrap();
            admin
        };
        let mut admin = close(manager).await;
        admin
            .execute("CREATE DATABASE backup TEMPLATE main")
            .await
            .unwrap();
        let manager = manager_on(&url).await;
        seen.take(&manager, &url, "after the backup").await;
        let mut admin = close(manager).await;
        admin
            .execute("DROP DATABASE main WITH (FORCE)")
            .await
            .unwrap();
        admin
            .execute("ALTER DATABASE backup RENAME TO main")
            .await
            .unwrap();
        let manager = manager_on(&url).await;
        seen.take(&manager, &url, "restored").await;
    }

    /// An INSERT waits for the row while other holders come and go. Its fencing token must be
    /// greater than theirs. The server process of the INSERT is stopped while it waits.
    #[rocket::async_test]
    async fn an_insert_that_had_to_wait_gets_no_smaller_token() {
        let cluster = Cluster::start().await;
        let (url, manager) = with_leases(&cluster).await;
        let mut seen = Seen::default();
        for round in 0..5 {
            // A new manager in each round: a manager that has had several turns yields to other
            // waiters and would not try at all.
            let late = manager_on(&url).await;
            let late = late.with_retry_interval(Duration::from_secs(10));
            let held = manager.acquire("a").await.unwrap();
            seen.given("a", held.fencing_token(), "held");
            // This transaction represents a release whose commit takes a while.
            let mut commit = PgConnection::connect(&url).await.unwrap();
            commit
                .execute("UPDATE aggregate_locks SET expires_at = 0")
                .await
                .unwrap();
            commit
                .execute("BEGIN; DELETE FROM aggregate_locks")
                .await
                .unwrap();
            let waiting = rocket::tokio::spawn(async move { late.acquire("a").await });
            let mut backend: Option<i32> = None;
            let mut admin = cluster.admin().await;
            eventually("the INSERT waits for the row", async || {
                backend = sqlx::query_scalar(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                     AND application_name = 'rocket_tx leases' AND query LIKE 'WITH turn%'",
                )
                .fetch_optional(&mut admin)
                .await
                .unwrap();
                backend.is_some()
            })
            .await;
            let backend = backend.unwrap().to_string();
            let stopped = |title: &str| title.contains(" waiting");
            cluster.signal_processes("STOP", stopped);
            commit.execute("COMMIT").await.unwrap();
            if round % 2 == 0 {
                // Another manager may get the lease meanwhile, or time out.
                let other = manager_on(&url).await.with_max_wait(Some(200 * MS));
                for _ in 0..3 {
                    match other.acquire("a").await {
                        Ok(lease) => {
                            seen.given("a", lease.fencing_token(), "meanwhile");
                            lease.release().await.unwrap();
                        }
                        Err(error) => assert!(
                            matches!(error, LockError::TimedOut { .. }),
                            "{backend}: {error}"
                        ),
                    }
                }
            }
            cluster.signal_backends("CONT");
            let lease = waiting.await.unwrap().unwrap();
            seen.given("a", lease.fencing_token(), "late");
            lease.release().await.unwrap();
            let _lost = held.release().await;
        }
    }
}
