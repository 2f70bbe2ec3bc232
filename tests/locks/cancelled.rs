//! A future that is dropped before it completes leaves the key free.

use rocket_tx_aggregates::lock::{AsyncLock, AsyncLockManager};

use super::Leases;
use crate::support::{Backend, dropped_after, eventually};

/// A lease lasts 30 s, so a key that is free sooner was released.
async fn a_future_dropped_at_any_await_point_frees_the_key(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let lock = leases.manager.get_lock("a").unwrap();
    let mut completed = [0; 3];
    for polls in 0..60 {
        completed[0] += u32::from(dropped_after(polls, leases.manager.acquire("a")).await);
        other.acquire("a").await.unwrap().release_now().await;

        if dropped_after(polls, lock.lock()).await {
            completed[1] += 1;
            lock.unlock().await.unwrap();
        }
        other.acquire("a").await.unwrap().release_now().await;

        if dropped_after(polls, lock.try_lock()).await {
            completed[1] += 1;
            lock.unlock().await.unwrap();
        }
        other.acquire("a").await.unwrap().release_now().await;

        lock.lock().await.unwrap();
        completed[2] += u32::from(dropped_after(polls, lock.unlock()).await);
        // A future that is never polled does nothing.
        match polls {
            0 => lock.unlock().await.unwrap(),
            _ => other.acquire("a").await.unwrap().release_now().await,
        }
    }
    // Of each kind, some futures completed and some were dropped before.
    for completed in completed {
        assert!((1..120).contains(&completed), "{completed}");
    }
    drop(lock);
    leases.everything_is_free().await;
}

async fn dropped_waiters_leave_no_gate(backend: Backend) {
    let leases = Leases::new(backend).await;
    let other = leases.another().await;
    let held = other.acquire("a").await.unwrap();
    for polls in 1..20 {
        assert!(!dropped_after(polls, leases.manager.acquire("a")).await);
    }
    // The key is still held, so no waiter could have got it.
    eventually("no gate is left", async || leases.manager.keys() == 0).await;
    drop(held);
    leases.everything_is_free().await;
}

async fn futures_that_are_never_polled_do_nothing(backend: Backend) {
    let leases = Leases::new(backend).await;
    let lock = leases.manager.get_lock("a").unwrap();
    drop(leases.manager.acquire("a"));
    drop(lock.lock());
    drop(lock.try_lock());
    rocket::tokio::task::yield_now().await;
    assert!(leases.rows().await.is_empty());
    lock.lock().await.unwrap();
    drop(lock.unlock());
    rocket::tokio::task::yield_now().await;
    assert_eq!(leases.rows().await.len(), 1);
    lock.unlock().await.unwrap();
    assert!(leases.rows().await.is_empty());
}

on_each_backend!(
    a_future_dropped_at_any_await_point_frees_the_key,
    dropped_waiters_leave_no_gate,
    futures_that_are_never_polled_do_nothing,
);

trait ReleaseNow {
    async fn release_now(self);
}

impl<H: rocket_tx_aggregates::lock::Hold> ReleaseNow for H {
    async fn release_now(self) {
        self.release().await.unwrap();
    }
}
