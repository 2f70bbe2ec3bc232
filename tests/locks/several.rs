//! Several leases that one call takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rocket::futures::future::{join, join_all};
use rocket::tokio::spawn;
use rocket_tx_aggregates::lock::{AsyncLockManager, Hold, Lease, LockError, UrlLeases};

use super::Leases;
use crate::support::{Backend, dropped_after, eventually};

const MS: Duration = Duration::from_millis(1);

pub fn keys(number: usize) -> Vec<String> {
    (0..number).map(|n| format!("key {n:04}")).collect()
}

pub fn borrowed(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

pub async fn release_all(leases: Vec<Lease<UrlLeases>>) {
    let released = join_all(leases.into_iter().map(Hold::release)).await;
    assert!(released.iter().all(Result::is_ok), "{released:?}");
}

/// The sequence of fencing tokens is not open yet when the first call comes.
async fn the_first_call_takes_all(backend: Backend) {
    for wait in [Duration::ZERO, 60_000 * MS] {
        let leases = Leases::new(backend).await;
        let manager = leases.another().await.with_max_wait(Some(wait));
        let held = manager.hold_all(&["b", "a", "c", "b"]).await.unwrap();
        let names: Vec<_> = held.iter().map(Hold::key).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let rows = leases.rows().await;
        assert_eq!(rows.len(), 3);
        for (row, lease) in rows.iter().zip(&held) {
            assert_eq!(row.key, lease.key());
            assert_eq!(row.fencing_token, lease.fencing_token());
            assert!(!row.wanted && (20_000..=30_000).contains(&row.expires_in_ms));
        }
        release_all(held).await;
        assert_eq!(manager.stats().acquired, 3);
        leases.everything_is_free().await;
    }
}

/// More keys than one statement takes.
async fn a_thousand_leases_are_taken(backend: Backend) {
    let leases = Leases::new(backend).await;
    let all = keys(1_000);
    for wait in [Duration::ZERO, 60_000 * MS] {
        let manager = leases.another().await.with_max_wait(Some(wait));
        let held = manager.hold_all(&borrowed(&all)).await.unwrap();
        let names: Vec<_> = held.iter().map(Hold::key).collect();
        assert_eq!(names, borrowed(&all));
        assert_eq!(leases.rows().await.len(), 1_000);
        drop(held);
        leases.everything_is_free().await;
    }
}

/// The keys before the held one are taken, and those after it stay free for others.
async fn a_call_waits_only_with_earlier_keys(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let slow = leases.another().await;
    let slow = slow.with_retry_interval(120_000 * MS).with_max_wait(None);
    // The key is held by another process, and by another task of this one.
    for holder in [&other, &slow] {
        let held = holder.acquire("m").await.unwrap();
        let manager = slow.clone();
        let waiting =
            spawn(async move { manager.hold_all(&["z", "m", "n", "a", "b"]).await.unwrap() });
        eventually("the earlier keys are taken", async || {
            let rows = leases.rows().await;
            let keys: Vec<_> = rows.iter().map(|row| row.key.as_str()).collect();
            keys == ["a", "b", "m"]
        })
        .await;
        assert!(other.try_acquire("b").await.unwrap().is_none());
        for key in ["n", "z"] {
            let taken = other.acquire(key).await.unwrap();
            taken.release().await.unwrap();
        }
        let started = Instant::now();
        held.release().await.unwrap();
        let all = waiting.await.unwrap();
        assert!(started.elapsed() < 30_000 * MS, "it was not woken");
        assert_eq!(all.len(), 5);
        release_all(all).await;
    }
    leases.everything_is_free().await;
}

async fn a_call_without_a_wait_takes_all_or_none(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let hasty = leases.another().await.with_max_wait(Some(Duration::ZERO));
    for holder in [&other, &hasty] {
        let held = holder.acquire("m").await.unwrap();
        let refused = hasty.hold_all(&["a", "m", "z"]).await.map(drop);
        match refused {
            Err(LockError::TimedOut { key, .. }) => assert_eq!(key, "m"),
            refused => panic!("{refused:?}"),
        }
        held.release().await.unwrap();
        leases.everything_is_free().await;
        eventually("no gate is left", async || hasty.keys() == 0).await;
    }
}

/// The leases of a process that has ended are taken over together.
async fn expired_leases_are_taken_over(backend: Backend) {
    let leases = Leases::new(backend).await;
    let all = keys(100);
    let dying = leases.another().await.with_lease_ttl(300 * MS);
    let dying = dying.with_renewal_cap(Duration::ZERO);
    let lost = dying.hold_all(&borrowed(&all)).await.unwrap();
    let tokens: Vec<i64> = lost.iter().map(Lease::fencing_token).collect();
    // These were not held by it.
    let free = ["key 0000 and more", "z"];
    let wanted = [borrowed(&all), free.to_vec()].concat();
    let manager = leases.another().await.with_max_wait(None);
    let held = manager.hold_all(&wanted).await.unwrap();
    assert_eq!(held.len(), 102);
    let stats = manager.stats();
    assert_eq!((stats.acquired, stats.taken_over), (102, 100));
    let held: BTreeMap<String, Lease<UrlLeases>> = held
        .into_iter()
        .map(|lease| (lease.key().to_owned(), lease))
        .collect();
    for (key, before) in all.iter().zip(tokens) {
        let now = held[key].fencing_token();
        assert!(now > before, "{key}: {now} after {before}");
    }
    for lease in lost {
        assert!(matches!(lease.release().await, Err(LockError::Lost(_))));
    }
    assert_eq!(leases.rows().await.len(), 102);
    release_all(held.into_values().collect()).await;
    leases.everything_is_free().await;
}

/// Two processes take overlapping sets, in all orders, and some calls are dropped half-way.
async fn overlapping_calls_exclude_each_other_and_never_deadlock(backend: Backend) {
    const TASKS: usize = 12;
    const CALLS: usize = 25;
    const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    let leases = Leases::new(backend).await;
    let managers = [leases.another().await, leases.another().await];
    let managers = managers.map(|manager| manager.with_max_wait(Some(120_000 * MS)));
    // The keys that are held, and the last fencing token of each key.
    let held = Mutex::new(BTreeSet::new());
    let last = Mutex::new(BTreeMap::new());
    let work = |task: usize| {
        let (manager, held, last) = (&managers[task % 2], &held, &last);
        async move {
            for call in 0..CALLS {
                let mut keys = KEYS.to_vec();
                fastrand::shuffle(&mut keys);
                keys.truncate(fastrand::usize(1..=KEYS.len()));
                if call % 5 == 4 {
                    dropped_after(fastrand::usize(0..20), manager.hold_all(&keys)).await;
                    continue;
                }
                let taken = manager.hold_all(&keys).await.unwrap();
                for lease in &taken {
                    let key = lease.key().to_owned();
                    assert!(held.lock().unwrap().insert(key.clone()), "two have {key}");
                    let token = lease.fencing_token();
                    let before = last.lock().unwrap().insert(key, token);
                    assert!(before.is_none_or(|before| before < token));
                }
                rocket::tokio::task::yield_now().await;
                for lease in &taken {
                    held.lock().unwrap().remove(lease.key());
                }
                match call % 3 {
                    0 => drop(taken),
                    _ => release_all(taken).await,
                }
            }
        }
    };
    let all = join_all((0..TASKS).map(work));
    let done = rocket::tokio::time::timeout(100_000 * MS, all).await;
    assert!(done.is_ok(), "the calls wait for each other");
    leases.everything_is_free().await;
    for manager in managers {
        eventually("no gate is left", async || manager.keys() == 0).await;
    }
}

/// Two processes that practically never poll take the same keys in turns.
async fn calls_of_two_processes_take_turns(backend: Backend) {
    const CALLS: usize = 15;

    let leases = Leases::new(backend).await;
    let managers = [leases.another().await, leases.another().await];
    let managers = managers.map(|manager| {
        let manager = manager.with_retry_interval(120_000 * MS);
        manager.with_max_wait(None)
    });
    let holders = Mutex::new(Vec::new());
    let work = |task: usize| {
        let (manager, holders) = (&managers[task % 2], &holders);
        async move {
            for _ in 0..CALLS {
                let taken = manager.hold_all(&["a", "b", "c"]).await.unwrap();
                holders.lock().unwrap().push(task % 2);
                release_all(taken).await;
            }
        }
    };
    let started = Instant::now();
    join_all((0..8).map(work)).await;
    assert!(started.elapsed() < 60_000 * MS, "{:?}", started.elapsed());
    let holders = holders.into_inner().unwrap();
    let changes = holders.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(changes >= 4, "{changes}: {holders:?}");
    leases.everything_is_free().await;
}

/// A lease lasts 30 s, so keys that are free sooner were released.
async fn a_call_dropped_at_any_await_point_frees_all_keys(backend: Backend) {
    const KEYS: [&str; 4] = ["a", "b", "c", "d"];

    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let mut completed = 0;
    for polls in 0..60 {
        completed += u32::from(dropped_after(polls, leases.manager.hold_all(&KEYS)).await);
        release_all(other.hold_all(&KEYS).await.unwrap()).await;
        // Now the call has to wait for a key of another process, or of another task.
        for holder in [&other, &leases.manager] {
            let held = holder.acquire("c").await.unwrap();
            let dropped = dropped_after(polls, leases.manager.hold_all(&KEYS));
            assert!(!dropped.await);
            held.release().await.unwrap();
            release_all(other.hold_all(&KEYS).await.unwrap()).await;
        }
    }
    assert!((1..60).contains(&completed), "{completed}");
    leases.everything_is_free().await;
}

/// All tasks of a process queue for one key, while another process takes several.
async fn a_call_gets_its_turn_among_calls_for_one_key(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await.with_max_wait(None);
    let busy = leases.another().await.with_max_wait(None);
    let done = std::sync::atomic::AtomicBool::new(false);
    let single = |key: &'static str| {
        let (busy, done) = (&busy, &done);
        async move {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                busy.acquire(key).await.unwrap().release().await.unwrap();
            }
        }
    };
    let several = async {
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            let started = Instant::now();
            let taken = other.hold_all(&["a", "b", "c"]).await.unwrap();
            longest = longest.max(started.elapsed());
            release_all(taken).await;
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        longest
    };
    let singles = join_all(["a", "b", "c", "a", "b", "c"].map(single));
    let (longest, _) = join(several, singles).await;
    assert!(longest < 10_000 * MS, "{longest:?}");
    leases.everything_is_free().await;
}

on_each_backend!(
    the_first_call_takes_all,
    a_thousand_leases_are_taken,
    a_call_waits_only_with_earlier_keys,
    a_call_without_a_wait_takes_all_or_none,
    expired_leases_are_taken_over,
    overlapping_calls_exclude_each_other_and_never_deadlock,
    calls_of_two_processes_take_turns,
    a_call_dropped_at_any_await_point_frees_all_keys,
    a_call_gets_its_turn_among_calls_for_one_key,
);
