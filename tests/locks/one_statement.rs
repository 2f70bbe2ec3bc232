//! The statement that takes several leases: how often it is sent, and its races with other statements.

use std::time::Duration;

use rocket::tokio::spawn;
use rocket::tokio::task::JoinHandle;
use rocket_tx_aggregates::lock::{AsyncLockManager, Hold, Lease, UrlLeases};
use sqlx::{Executor, PgConnection};

use super::several::{borrowed, keys, release_all};
use super::{Leases, manager_on};
use crate::support::{Backend, Break, In, Proxy, eventually};

const MS: Duration = Duration::from_millis(1);

/// Returns the number of commits in the log of a SQLite database: the frames that name the size of
/// the database after them.
fn commits(leases: &Leases) -> usize {
    let path = leases.databases.main.strip_prefix("sqlite:").unwrap();
    let log = std::fs::read(format!("{path}-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let frames = log[32..].chunks_exact(24 + number(8) as usize);
    // A frame with another salt than the log is from before the last checkpoint.
    let frames = frames.filter(|frame| frame[8..16] == log[16..24]);
    frames.filter(|frame| frame[4..8] != [0; 4]).count()
}

mod trips {
    use super::*;

    /// A checkpoint may begin the log anew, so the best of several attempts counts.
    #[rocket::async_test]
    async fn on_sqlite_one_commit_takes_all() {
        let leases = Leases::new(Backend::Sqlite).await;
        let all = keys(100);
        let mut least = usize::MAX;
        for _ in 0..3 {
            let before = commits(&leases);
            let held = leases.manager.hold_all(&borrowed(&all)).await.unwrap();
            least = least.min(commits(&leases).wrapping_sub(before));
            release_all(held).await;
        }
        assert_eq!(least, 1);
    }

    /// Other tasks may use the connections too, so the best of several attempts counts.
    #[rocket::async_test]
    async fn on_postgres_one_round_trip_takes_all_and_takes_all_over() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = Proxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url(&leases.databases.main)).await;
        let dying = leases.another().await.with_lease_ttl(100 * MS);
        let dying = dying.with_renewal_cap(Duration::ZERO);
        let all = keys(100);
        let mut least = [u64::MAX; 2];
        for _ in 0..4 {
            let lost = dying.hold_all(&borrowed(&all)).await.unwrap();
            rocket::tokio::time::sleep(150 * MS).await;
            for trips in least.iter_mut().rev() {
                let before = proxy.round_trips();
                let held = manager.hold_all(&borrowed(&all)).await.unwrap();
                *trips = proxy.round_trips().wrapping_sub(before).min(*trips);
                drop(held);
                leases.everything_is_free().await;
            }
            drop(lost);
        }
        assert_eq!(least, [1, 1]);
    }
}

mod postgres_races {
    use super::*;

    const INSERT: &str = "INSERT INTO aggregate_locks \
        SELECT 'a', 'raw', 'raw', 1, now, now + 60000, FALSE \
        FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint) AS clock (now)";

    const WAITING: &str = "SELECT 'yes' FROM pg_stat_activity \
        WHERE datname = current_database() AND wait_event_type = 'Lock'";

    /// Begins a call for the keys `a` and `b`, and waits until its statement is stopped at the key
    /// `a`, by the returned transaction, which has inserted the row.
    async fn stopped_at_a(leases: &Leases) -> (PgConnection, JoinHandle<Vec<Lease<UrlLeases>>>) {
        let manager = leases.another().await;
        let manager = manager.with_retry_interval(30_000 * MS).with_max_wait(None);
        // Opens the source of fencing tokens.
        manager.acquire("c").await.unwrap().release().await.unwrap();
        let mut raw = leases.databases.postgres(In::Main).await;
        raw.execute("BEGIN").await.unwrap();
        raw.execute(INSERT).await.unwrap();
        let waiting = spawn(async move { manager.hold_all(&["a", "b"]).await.unwrap() });
        eventually("the statement is stopped", async || {
            !leases.databases.texts(In::Main, WAITING).await.is_empty()
        })
        .await;
        (raw, waiting)
    }

    #[rocket::async_test]
    async fn a_lease_behind_one_that_another_process_took_first_is_released() {
        let leases = Leases::new(Backend::Postgres).await;
        let (mut raw, waiting) = stopped_at_a(&leases).await;
        raw.execute("COMMIT").await.unwrap();
        eventually("only the other process has a lease", async || {
            let rows = leases.rows().await;
            rows.len() == 1 && rows[0].token == "raw" && rows[0].wanted
        })
        .await;
        assert!(leases.manager.free("raw").await.unwrap());
        let held = waiting.await.unwrap();
        assert_eq!(held.len(), 2);
        release_all(held).await;
        leases.everything_is_free().await;
    }

    /// The lease is expired when the statement begins, and not any more when it is reached.
    #[rocket::async_test]
    async fn a_lease_that_is_renewed_meanwhile_is_not_taken_over() {
        const RENEW: &str = "UPDATE aggregate_locks SET expires_at = expires_at + 60000 \
                             WHERE lock_key = 'b'";

        let leases = Leases::new(Backend::Postgres).await;
        let late = leases.another().await.with_lease_ttl(100 * MS);
        let late = late.with_renewal_cap(Duration::ZERO);
        let lost = late.acquire("b").await.unwrap();
        rocket::tokio::time::sleep(150 * MS).await;
        let (mut raw, waiting) = stopped_at_a(&leases).await;
        leases.databases.execute(In::Main, RENEW).await;
        raw.execute("ROLLBACK").await.unwrap();
        eventually("the lease is waited for", async || {
            let rows = leases.rows().await;
            rows.len() == 2 && rows[1].wanted
        })
        .await;
        assert_eq!(leases.rows().await[1].fencing_token, lost.fencing_token());
        lost.release().await.unwrap();
        let held = waiting.await.unwrap();
        assert_eq!(held.len(), 2);
        release_all(held).await;
        leases.everything_is_free().await;
    }
}

mod postgres_network {
    use super::*;

    /// The next attempt finds the rows of the first one.
    #[rocket::async_test]
    async fn leases_whose_reply_is_lost_are_taken() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = Proxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url(&leases.databases.main)).await;
        let all = ["a", "b", "c"];
        release_all(manager.hold_all(&all).await.unwrap()).await;
        for kind in [Break::Before, Break::After] {
            // The class of the advisory locks, which is an argument.
            proxy.set("rtxl", kind);
            let held = manager.hold_all(&all).await.unwrap();
            assert!(proxy.has_sprung(), "{kind:?}");
            let numbers: Vec<i64> = held.iter().map(Lease::fencing_token).collect();
            let rows = leases.rows().await;
            let stored: Vec<i64> = rows.iter().map(|row| row.fencing_token).collect();
            assert_eq!(numbers, stored);
            assert_eq!(manager.stats().taken_over, 0);
            release_all(held).await;
        }
        leases.everything_is_free().await;
    }

    /// The caller has gone before the reply comes.
    #[rocket::async_test]
    async fn leases_whose_caller_has_gone_are_released() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = Proxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url(&leases.databases.main)).await;
        let all = ["a", "b", "c"];
        release_all(manager.hold_all(&all).await.unwrap()).await;
        proxy.set("rtxl", Break::HoldReply);
        let gone = manager.clone();
        let waiting = spawn(async move { gone.hold_all(&all).await.map(drop) });
        eventually("the statement was executed", async || proxy.has_sprung()).await;
        assert_eq!(leases.rows().await.len(), 3);
        waiting.abort();
        assert!(waiting.await.is_err());
        proxy.deliver();
        leases.everything_is_free().await;
        eventually("no gate is left", async || manager.keys() == 0).await;
    }
}
