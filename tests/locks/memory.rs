//! Locks in memory, for one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rocket::futures::future::join_all;
use rocket_tx_aggregates::lock::{
    AsyncLock, AsyncLockManager, Hold, InMemoryAsyncLock, InMemoryAsyncLockManager, LockError,
};

#[rocket::async_test]
async fn a_key_has_one_holder_at_a_time() {
    let locks = InMemoryAsyncLockManager::new();
    let inside = AtomicU32::new(0);
    let work = |_| async {
        let hold = locks.hold_all(&["a"]).await.unwrap();
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
        rocket::tokio::task::yield_now().await;
        inside.fetch_sub(1, Ordering::SeqCst);
        drop(hold);
    };
    join_all((0..100).map(work)).await;
    assert_eq!(locks.keys(), 0);
}

#[rocket::async_test]
async fn all_handles_of_a_key_share_one_lock() {
    let locks = InMemoryAsyncLockManager::new();
    locks.get_lock("a").unwrap().lock().await.unwrap();
    // The handle was dropped, but the lock is still held.
    assert!(!locks.get_lock("a").unwrap().try_lock().await.unwrap());
    assert!(locks.get_lock("b").unwrap().try_lock().await.unwrap());
    locks.get_lock("a").unwrap().unlock().await.unwrap();
    assert!(locks.get_lock("a").unwrap().try_lock().await.unwrap());
}

#[rocket::async_test]
async fn a_wait_ends_after_max_wait() {
    let wait = Duration::from_millis(50);
    let locks = InMemoryAsyncLockManager::new().with_max_wait(Some(wait));
    let held = locks.hold_all(&["b"]).await.unwrap();
    let refused = locks.hold_all(&["b", "a"]).await.map(drop);
    assert!(matches!(refused, Err(LockError::TimedOut { .. })));
    assert!(locks.get_lock("a").unwrap().try_lock().await.unwrap());
    drop(held);
    assert!(locks.get_lock("b").unwrap().try_lock().await.unwrap());
}

/// A task that waits for itself does not wait for ever.
#[rocket::async_test]
async fn a_wait_ends_by_default_too() {
    let locks = InMemoryAsyncLockManager::new();
    let _held = locks.hold_all(&["a"]).await.unwrap();
    let limit = Duration::from_secs(30);
    let again = rocket::tokio::time::timeout(limit, locks.hold_all(&["a"]));
    let error = again
        .await
        .expect("there is a limit")
        .map(drop)
        .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("`a` was held by another holder for 5s"),
        "{message}"
    );
    assert!(message.contains("the caller itself"), "{message}");
}

#[rocket::async_test]
async fn invalid_keys_are_refused() {
    let locks = InMemoryAsyncLockManager::new();
    for key in ["", "a\nb", &"x".repeat(301)] {
        assert!(matches!(locks.get_lock(key), Err(LockError::Key)), "{key}");
    }
    assert!(locks.get_lock(&"x".repeat(300)).is_ok());
}

#[rocket::async_test]
async fn dropped_futures_leave_the_key_free() {
    let locks = InMemoryAsyncLockManager::new();
    let lock = locks.get_lock("a").unwrap();
    drop(lock.lock());
    drop(lock.try_lock());
    assert!(lock.try_lock().await.unwrap());
    drop(lock.unlock());
    assert!(
        !lock.try_lock().await.unwrap(),
        "the unlock was never polled"
    );

    let mut waiting = Box::pin(lock.lock());
    let polled = waiting
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    drop(waiting);
    lock.unlock().await.unwrap();
    assert!(lock.try_lock().await.unwrap());
}

/// A waker that polls the lock again immediately, inside `unlock`.
struct Reentrant {
    lock: Arc<InMemoryAsyncLock>,
    woken: AtomicBool,
}

impl Wake for Reentrant {
    fn wake(self: Arc<Self>) {
        let mut other = Box::pin(self.lock.try_lock());
        let polled = other.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_ready());
        self.woken.store(true, Ordering::SeqCst);
    }
}

#[rocket::async_test]
async fn a_waker_may_use_the_lock() {
    let locks = InMemoryAsyncLockManager::new();
    let lock = locks.get_lock("a").unwrap();
    lock.lock().await.unwrap();
    let reentrant = Arc::new(Reentrant {
        lock: Arc::clone(&lock),
        woken: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&reentrant));
    let mut waiting = Box::pin(lock.lock());
    let polled = waiting.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    lock.unlock().await.unwrap();
    assert!(reentrant.woken.load(Ordering::SeqCst));
    assert!(matches!(
        waiting.as_mut().poll(&mut Context::from_waker(&waker)),
        Poll::Ready(Ok(()))
    ));
}

#[rocket::async_test]
async fn a_panic_of_the_holder_frees_the_key() {
    let locks = InMemoryAsyncLockManager::new();
    let inside = locks.clone();
    let panicked = rocket::tokio::spawn(async move {
        let holds = inside.hold_all(&["a"]).await.unwrap();
        assert_eq!(holds[0].key(), "a");
        panic!("while it is held");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert!(locks.get_lock("a").unwrap().try_lock().await.unwrap());
}
