//! How the right to write a key moves from one process to another. Polling never helps in these
//! tests, because the retry interval is longer than they may take.

use std::sync::Mutex;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use rocket::futures::future::{join, join_all};
use rocket::tokio::spawn;
use rocket_tx_aggregates::lock::{AsyncLockManager, Hold, UrlLockManager};

use super::Leases;
use crate::support::{Backend, In, dropped_after, eventually};

const LIMIT: Duration = Duration::from_secs(30);

/// Two managers, as in two processes, that practically never poll.
async fn two(leases: &Leases) -> [UrlLockManager; 2] {
    let slow = |manager: UrlLockManager| {
        manager
            .with_retry_interval(Duration::from_secs(120))
            .with_max_wait(None)
    };
    [slow(leases.another().await), slow(leases.another().await)]
}

async fn is_wanted(leases: &Leases) {
    eventually("the lease is wanted", async || {
        leases.rows().await.iter().any(|row| row.wanted)
    })
    .await;
}

async fn a_release_wakes_a_waiter_in_another_process(backend: Backend) {
    let leases = Leases::new(backend).await;
    let [one, other] = two(&leases).await;
    for _ in 0..3 {
        let lease = one.acquire("a").await.unwrap();
        let other = other.clone();
        let waiting = spawn(async move {
            other.acquire("a").await.unwrap().release().await.unwrap();
        });
        is_wanted(&leases).await;
        let started = Instant::now();
        drop(lease);
        waiting.await.unwrap();
        let took = started.elapsed();
        assert!(took < LIMIT, "{took:?}");
    }
}

/// Each process gets its turns, and none of them waits for long after it has given way.
async fn processes_take_turns(backend: Backend) {
    const TASKS: usize = 8;
    const PAIRS: usize = 15;

    let leases = Leases::new(backend).await;
    let managers = two(&leases).await;
    for [one, other] in [[0, 1], [1, 0]] {
        // After its first wait, a process listens for notifications.
        let lease = managers[one].acquire("a").await.unwrap();
        let waiting = managers[other].acquire("a");
        let (waited, ()) = join(waiting, async {
            is_wanted(&leases).await;
            lease.release().await.unwrap();
        })
        .await;
        waited.unwrap().release().await.unwrap();
    }
    let holders = Mutex::new(Vec::new());
    let work = |task: usize| {
        let (manager, holders) = (&managers[task % 2], &holders);
        async move {
            for _ in 0..PAIRS {
                let lease = manager.acquire("a").await.unwrap();
                holders.lock().unwrap().push(task % 2);
                lease.release().await.unwrap();
            }
        }
    };
    let started = Instant::now();
    join_all((0..2 * TASKS).map(work)).await;
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
    let holders = holders.into_inner().unwrap();
    assert_eq!(holders.len(), 2 * TASKS * PAIRS);
    let changes = holders.windows(2).filter(|two| two[0] != two[1]).count();
    // With shares of 8 turns there are 30 changes. A process that is late misses its share.
    assert!(changes >= 6, "{changes}: {holders:?}");
    leases.everything_is_free().await;
}

/// A client that takes the key again and again does not starve another process.
async fn a_single_client_gives_way(backend: Backend) {
    let leases = Leases::new(backend).await;
    let [one, other] = two(&leases).await;
    let lease = one.acquire("a").await.unwrap();
    let waiting = spawn(async move {
        other.acquire("a").await.unwrap().release().await.unwrap();
    });
    is_wanted(&leases).await;
    lease.release().await.unwrap();
    let mut turns = 0;
    let started = Instant::now();
    while !waiting.is_finished() {
        one.acquire("a").await.unwrap().release().await.unwrap();
        turns += 1;
        assert!(started.elapsed() < LIMIT, "{turns} turns");
    }
    waiting.await.unwrap();
    leases.everything_is_free().await;
}

/// A process gives way to a waiter that has gone, and goes on soon.
async fn a_process_goes_on_if_the_other_does_not_come(backend: Backend) {
    let leases = Leases::new(backend).await;
    let [one, other] = two(&leases).await;
    let lease = one.acquire("a").await.unwrap();
    let waiting = spawn(async move { other.acquire("a").await.map(drop) });
    is_wanted(&leases).await;
    waiting.abort();
    assert!(waiting.await.is_err());
    let started = Instant::now();
    lease.release().await.unwrap();
    for _ in 0..20 {
        one.acquire("a").await.unwrap().release().await.unwrap();
        assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
    }
    leases.everything_is_free().await;
}

/// A release wakes no other process if a task of the same process is next. If this task goes, it
/// wakes the other process.
async fn a_task_that_leaves_the_queue_wakes_the_other_process(backend: Backend) {
    let leases = Leases::new(backend).await;
    let [one, other] = two(&leases).await;
    for several in [false, true] {
        let held = one.acquire("a").await.unwrap();
        let other = other.clone();
        let waiting = spawn(async move {
            other.acquire("a").await.unwrap().release().await.unwrap();
        });
        is_wanted(&leases).await;
        let one = one.clone();
        let mut next = Box::pin(async move {
            match several {
                true => one.hold_all(&["a", "b"]).await.map(drop),
                false => one.acquire("a").await.map(drop),
            }
        });
        let polled = next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        let started = Instant::now();
        held.release().await.unwrap();
        drop(next);
        waiting.await.unwrap();
        assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
        leases.everything_is_free().await;
    }
}

/// The waiter is dropped while it waits for another process or looks at its row.
async fn a_waiter_dropped_at_any_await_point_frees_the_key(backend: Backend) {
    let leases = Leases::new(backend).await;
    let waiter = leases.another().await;
    let waiter = waiter.with_retry_interval(Duration::from_millis(1));
    let other = leases.another().await;
    for polls in 0..60 {
        let held = other.acquire("a").await.unwrap();
        assert!(!dropped_after(polls, waiter.acquire("a")).await);
        held.release().await.unwrap();
        other.acquire("a").await.unwrap().release().await.unwrap();
    }
    leases.everything_is_free().await;
    eventually("no gate is left", async || waiter.keys() == 0).await;
}

/// The waiter is dropped while it lets another process go first.
async fn a_yielding_task_dropped_at_any_await_point_frees_the_key(backend: Backend) {
    let leases = Leases::new(backend).await;
    let [yielding, other] = two(&leases).await;
    let mut completed = 0;
    for polls in 0..60 {
        let held = yielding.acquire("a").await.unwrap();
        let other = other.clone();
        let waiting = spawn(async move {
            other.acquire("a").await.unwrap().release().await.unwrap();
        });
        is_wanted(&leases).await;
        held.release().await.unwrap();
        completed += u32::from(dropped_after(polls, yielding.acquire("a")).await);
        waiting.await.unwrap();
        leases.everything_is_free().await;
    }
    assert!((1..60).contains(&completed), "{completed}");
    eventually("no gate is left", async || yielding.keys() == 0).await;
}

on_each_backend!(
    a_release_wakes_a_waiter_in_another_process,
    processes_take_turns,
    a_single_client_gives_way,
    a_process_goes_on_if_the_other_does_not_come,
    a_task_that_leaves_the_queue_wakes_the_other_process,
    a_waiter_dropped_at_any_await_point_frees_the_key,
    a_yielding_task_dropped_at_any_await_point_frees_the_key,
);

mod postgres_only {
    use super::*;

    const CONNECTIONS: &str = "SELECT count(*)::text FROM pg_stat_activity \
                               WHERE datname = current_database() \
                               AND application_name = 'rocket_tx leases'";

    /// A connection is opened only when the others are in use.
    #[rocket::async_test]
    async fn connections_grow_with_the_load_up_to_the_setting() {
        let leases = Leases::new(Backend::Postgres).await;
        let number = async || -> u32 {
            let number = leases.databases.texts(In::Main, CONNECTIONS).await;
            number[0].parse().unwrap()
        };
        let first = number().await;
        let manager = leases.another().await.with_max_connections(3);
        let open = async || number().await - first;
        for _ in 0..5 {
            manager.acquire("a").await.unwrap().release().await.unwrap();
        }
        assert_eq!(open().await, 1);
        let load = |number: usize| {
            let manager = &manager;
            async move {
                let key = format!("{number}");
                manager
                    .acquire(&key)
                    .await
                    .unwrap()
                    .release()
                    .await
                    .unwrap();
            }
        };
        for _ in 0..5 {
            join_all((0..16).map(load)).await;
        }
        assert_eq!(open().await, 3);
    }
}
