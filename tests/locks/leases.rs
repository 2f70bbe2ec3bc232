//! Leases: rows in a database that name the holder of a key and the time at which it expires.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rocket::futures::future::{join, join_all};
use rocket_tx_aggregates::lock::{AsyncLock, AsyncLockManager, Hold, LockError, UrlLockManager};

use super::Leases;
use crate::support::{Backend, In, eventually};

const MS: Duration = Duration::from_millis(1);

async fn a_lease_is_taken_contended_and_released(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let lease = leases.manager.acquire("a").await.unwrap();
    assert!(leases.manager.try_acquire("a").await.unwrap().is_none());
    assert!(other.try_acquire("a").await.unwrap().is_none());
    assert!(!other.get_lock("a").unwrap().try_lock().await.unwrap());
    assert!(other.try_acquire("b").await.unwrap().is_some());

    let row = &leases.rows().await[0];
    assert_eq!((row.key.as_str(), row.wanted), ("a", false));
    assert!((20_000..=30_000).contains(&row.expires_in_ms), "{row:?}");
    assert!((0..10_000).contains(&row.age_ms), "{row:?}");

    lease.release().await.unwrap();
    let lease = other.acquire("a").await.unwrap();
    drop(lease);
    leases.everything_is_free().await;
}

/// The owner id is only a label: two managers with the same id still exclude each other.
async fn two_processes_are_two_holders(backend: Backend) {
    let leases = Leases::new(backend).await;
    let same = |manager: UrlLockManager| manager.with_owner_id("same").with_max_wait(None);
    let one = same(leases.manager.clone());
    let other = same(leases.another().await);
    let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
    let work = |number: u32| {
        let manager = if number.is_multiple_of(2) {
            &one
        } else {
            &other
        };
        let (inside, turns) = (&inside, &turns);
        async move {
            let lease = manager.acquire("a").await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            rocket::tokio::time::sleep(MS).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            turns.fetch_add(1, Ordering::SeqCst);
            lease.release().await.unwrap();
        }
    };
    join_all((0..30).map(work)).await;
    assert_eq!(turns.into_inner(), 30);
}

async fn an_absent_row_is_inserted_by_one_manager(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    // On SQLite both tries may fail because the file is busy. Such a round shows nothing.
    let (mut taken, mut tried) = (0, 0);
    while taken < 30 {
        let key = format!("new {tried}");
        let (one, two) = join(leases.manager.try_acquire(&key), other.try_acquire(&key)).await;
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(one.is_none() || two.is_none(), "{key}: two holders");
        if backend == Backend::Postgres {
            assert!(one.is_some() || two.is_some(), "{key}: no holder");
        }
        taken += u32::from(one.is_some() || two.is_some());
        tried += 1;
        assert!(tried < 3_000, "only {taken} of {tried} had a holder");
    }
}

async fn an_expired_lease_is_taken_over(backend: Backend) {
    let leases = Leases::new(backend).await;
    // The lease is not renewed, as in a process that is stopped.
    let stopped = leases.manager.clone().with_lease_ttl(300 * MS);
    let stopped = stopped.with_renewal_cap(Duration::ZERO);
    let other = leases.another().await;
    let other = other.with_max_wait(None);
    let started = Instant::now();
    let lost = stopped.acquire("a").await.unwrap();
    let taken = other.acquire("a").await.unwrap();
    let took = started.elapsed();
    assert!((300 * MS..30_000 * MS).contains(&took), "{took:?}");
    assert!(taken.fencing_token() > lost.fencing_token());

    // The release of the lost lease does not free the new holder's lease.
    assert!(matches!(lost.release().await, Err(LockError::Lost(_))));
    let rows = leases.rows().await;
    assert_eq!(rows[0].fencing_token, taken.fencing_token());
    taken.release().await.unwrap();
    leases.everything_is_free().await;
}

async fn the_longest_wait_covers_gate_and_row(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let held = other.acquire("a").await.unwrap();
    let manager = leases.another().await.with_max_wait(Some(2_000 * MS));
    // The second wait queues at the gate after the first.
    let measure = async || {
        let started = Instant::now();
        let refused = manager.acquire("a").await.map(drop);
        assert!(matches!(refused, Err(LockError::TimedOut { .. })));
        started.elapsed()
    };
    let all = async {
        let started = Instant::now();
        assert!(manager.hold_all(&["c", "a", "b"]).await.is_err());
        started.elapsed()
    };
    let ((one, two), three) = join(join(measure(), measure()), all).await;
    // With separate limits for the gate and the row, the wait would be twice as long.
    for took in [one, two, three] {
        assert!((1_990 * MS..3_900 * MS).contains(&took), "{took:?}");
    }
    held.release().await.unwrap();
    leases.everything_is_free().await;
}

/// A free lease is taken; a held one is refused at once.
async fn a_wait_of_zero_takes_a_free_lease_or_fails_at_once(backend: Backend) {
    let leases = Leases::new(backend).await;
    let manager = leases.another().await.with_max_wait(Some(Duration::ZERO));
    for _ in 0..5 {
        let lease = manager.acquire("a").await.unwrap();
        let refused = leases.manager.clone().with_max_wait(Some(Duration::ZERO));
        let refused = refused.acquire("a").await.map(drop);
        assert!(matches!(refused, Err(LockError::TimedOut { .. })));
        lease.release().await.unwrap();
    }
}

async fn fencing_tokens_only_grow(backend: Backend) {
    let leases = Leases::new(backend).await;
    let short = leases.another().await.with_lease_ttl(100 * MS);
    let short = short.with_renewal_cap(Duration::ZERO);
    let mut last = i64::MIN;
    let mut grown = |token: i64| {
        assert!(token > last, "{token} after {last}");
        last = token;
    };
    for _ in 0..5 {
        let lease = leases.manager.acquire("a").await.unwrap();
        grown(lease.fencing_token());
        lease.release().await.unwrap();

        let lease = short.acquire("a").await.unwrap();
        grown(lease.fencing_token());
        let taken_over = leases.manager.acquire("a").await.unwrap();
        grown(taken_over.fencing_token());
        taken_over.release().await.unwrap();
        drop(lease);

        // A lease that was left behind and swept.
        let left = short.acquire("b").await.unwrap();
        grown(left.fencing_token());
        eventually("the lease is swept", async || {
            short.sweep_expired().await.unwrap() > 0
        })
        .await;
        assert!(matches!(left.release().await, Err(LockError::Lost(_))));
        let lease = leases.manager.acquire("b").await.unwrap();
        grown(lease.fencing_token());
        lease.release().await.unwrap();
    }
}

async fn a_sweep_spares_live_leases(backend: Backend) {
    let leases = Leases::new(backend).await;
    let sweeper = leases.another().await.with_lease_ttl(5_000 * MS);
    let living = leases.manager.acquire("living").await.unwrap();
    // This lease expires soon. The sweeper spares it until it has been expired for 5 s, the time to
    // live that the sweeper is configured with.
    let graced = leases.another().await.with_lease_ttl(100 * MS);
    let graced = graced.with_renewal_cap(Duration::ZERO);
    let expired = graced.acquire("expired").await.unwrap();
    rocket::tokio::time::sleep(150 * MS).await;
    assert_eq!(sweeper.sweep_expired().await.unwrap(), 0);
    eventually("the expired lease is swept", async || {
        sweeper.sweep_expired().await.unwrap() == 1
    })
    .await;
    let rows = leases.rows().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].key, "living");
    drop((living, expired));
    leases.everything_is_free().await;
}

async fn a_lease_is_renewed_while_it_is_held(backend: Backend) {
    let leases = Leases::new(backend).await;
    let holder = leases.another().await.with_lease_ttl(3_000 * MS);
    let other = leases.another().await.with_max_wait(Some(7_000 * MS));
    let lease = holder.acquire("a").await.unwrap();
    let refused = other.acquire("a").await.map(drop);
    assert!(matches!(refused, Err(LockError::TimedOut { .. })));
    assert!(!lease.is_lost());
    lease.release().await.unwrap();
}

async fn renewal_ends_at_its_cap(backend: Backend) {
    let leases = Leases::new(backend).await;
    let holder = leases.another().await.with_lease_ttl(200 * MS);
    let holder = holder.with_renewal_cap(300 * MS);
    let other = leases.manager.clone().with_max_wait(None);
    let started = Instant::now();
    let lease = holder.acquire("a").await.unwrap();
    let taken = other.acquire("a").await.unwrap();
    let took = started.elapsed();
    assert!(took > 300 * MS, "{took:?}");
    drop((lease, taken));
    leases.everything_is_free().await;
}

async fn a_lease_that_was_freed_by_an_operator_is_lost(backend: Backend) {
    let leases = Leases::new(backend).await;
    let holder = leases.another().await.with_lease_ttl(300 * MS);
    let lease = holder.acquire("a").await.unwrap();
    assert!(!leases.manager.free("no such token").await.unwrap());
    let token = leases.rows().await[0].token.clone();
    assert!(leases.manager.free(&token).await.unwrap());
    assert!(!leases.manager.free(&token).await.unwrap());
    eventually("the holder detects the loss", async || lease.is_lost()).await;
    let next = leases.manager.acquire("a").await.unwrap();
    assert!(matches!(lease.release().await, Err(LockError::Lost(_))));
    assert_eq!(leases.rows().await.len(), 1);
    next.release().await.unwrap();
}

/// If the row cannot be deleted, the release does not claim success.
async fn a_failed_release_is_reported(backend: Backend) {
    let leases = Leases::new(backend).await;
    let holder = leases.another().await.with_lease_ttl(300 * MS);
    let lease = holder.acquire("a").await.unwrap();
    let rename = "ALTER TABLE aggregate_locks RENAME TO elsewhere";
    leases.databases.execute(In::Main, rename).await;
    let released = lease.release().await;
    assert!(
        matches!(released, Err(LockError::NotReleased(_))),
        "{released:?}"
    );
}

async fn a_lease_with_a_waiter_is_listed_as_wanted(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let lease = leases.manager.acquire("a").await.unwrap();
    let waiting = rocket::tokio::spawn(async move { other.acquire("a").await.map(drop) });
    eventually("the lease is wanted", async || {
        leases.rows().await[0].wanted
    })
    .await;
    drop(lease);
    waiting.await.unwrap().unwrap();
    leases.everything_is_free().await;
}

async fn no_gate_is_left_behind(backend: Backend) {
    let leases = Leases::new(backend).await;
    for chunk in 0..100 {
        let work = |number| {
            let manager = &leases.manager;
            async move {
                let lock = manager.get_lock(&format!("{chunk}/{number}")).unwrap();
                lock.lock().await.unwrap();
                lock.unlock().await.unwrap();
            }
        };
        join_all((0..100).map(work)).await;
    }
    assert_eq!(leases.manager.keys(), 0);
    assert!(leases.rows().await.is_empty());
}

/// Two managers, as in two processes, take several keys in opposite orders.
async fn opposite_orders_never_deadlock(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let work = |number: u32| {
        let manager = if number.is_multiple_of(2) {
            &leases.manager
        } else {
            &other
        };
        async move {
            let mut keys = ["a", "b", "c", "b"];
            if number.is_multiple_of(3) {
                keys.reverse();
            }
            let holds = manager.hold_all(&keys).await.unwrap();
            assert_eq!(holds.len(), 3);
        }
    };
    join_all((0..24).map(work)).await;
    leases.everything_is_free().await;
}

on_each_backend!(
    a_lease_is_taken_contended_and_released,
    two_processes_are_two_holders,
    an_absent_row_is_inserted_by_one_manager,
    an_expired_lease_is_taken_over,
    the_longest_wait_covers_gate_and_row,
    a_wait_of_zero_takes_a_free_lease_or_fails_at_once,
    fencing_tokens_only_grow,
    a_sweep_spares_live_leases,
    a_lease_is_renewed_while_it_is_held,
    renewal_ends_at_its_cap,
    a_lease_that_was_freed_by_an_operator_is_lost,
    a_failed_release_is_reported,
    a_lease_with_a_waiter_is_listed_as_wanted,
    no_gate_is_left_behind,
    opposite_orders_never_deadlock,
);
