//! The interface of all locks, in memory or in a database.

use std::future::Future;
use std::sync::Arc;

use super::LockError;
use super::store::Fence;

/// A lock on one key.
///
/// All methods are lazy: nothing happens before the first poll. If the future of
/// [`lock`](Self::lock) or [`try_lock`](Self::try_lock) is dropped, that call does not leave the
/// key locked. A statement that was already sent still runs; if it takes the lock, the lock is
/// released at once.
pub trait AsyncLock: Send + Sync {
    /// Waits until this process has locked the key.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] after the manager's longest wait; [`LockError::Database`] if the lock
    /// is in a database that fails.
    fn lock(&self) -> impl Future<Output = Result<(), LockError>> + Send;

    /// Locks the key if it is free now, and returns whether it did.
    ///
    /// # Errors
    ///
    /// [`LockError::Database`] if the lock is in a database that fails.
    fn try_lock(&self) -> impl Future<Output = Result<bool, LockError>> + Send;

    /// Unlocks the key if this process holds it. Resolves when another holder can lock it.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the lock was lost before, so that another holder may have the key;
    /// [`LockError::NotReleased`] if its row could not be deleted and remains until it expires.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped after its first poll, the release continues and the key becomes
    /// free.
    fn unlock(&self) -> impl Future<Output = Result<(), LockError>> + Send;
}

/// Makes locks by key.
///
/// ```
/// use rocket_tx_aggregates::lock::{AsyncLock, AsyncLockManager, InMemoryAsyncLockManager};
///
/// # async fn example() -> Result<(), rocket_tx_aggregates::lock::LockError> {
/// let locks = InMemoryAsyncLockManager::new();
/// let lock = locks.get_lock("todo:7")?;
/// lock.lock().await?;
/// assert!(!locks.get_lock("todo:7")?.try_lock().await?);
/// lock.unlock().await?;
/// # Ok(()) }
/// # rocket::async_test(example()).unwrap();
/// ```
pub trait AsyncLockManager: Send + Sync + 'static {
    /// A lock on a key that is locked and unlocked explicitly.
    type Lock: AsyncLock + 'static;

    /// A locked key. Dropping it frees the key.
    type Hold: Hold;

    /// Returns the lock on `key`. All handles on a key share its state, which exists while the key
    /// is held or waited for, or while a handle exists.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`] unless the key has 1 to 300 bytes and no control characters.
    fn get_lock(&self, key: &str) -> Result<Arc<Self::Lock>, LockError>;

    /// Waits for all of `keys`. The longest wait applies to the whole call. Keys are locked in
    /// sorted order, so that two such calls cannot deadlock. Duplicates count once.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`], [`LockError::TimedOut`], [`LockError::Database`]. On an error all keys that were locked are freed.
    ///
    /// # Cancellation
    ///
    /// Dropping the future frees the keys that were locked. A statement that was already sent still
    /// runs; if it takes a lock, the lock is released at once.
    fn hold_all(
        &self,
        keys: &[&str],
    ) -> impl Future<Output = Result<Vec<Self::Hold>, LockError>> + Send;
}

/// A locked key. Dropping it frees the key. If the release needs a statement, a separate task runs
/// it.
pub trait Hold: Send + 'static {
    /// Returns the locked key.
    fn key(&self) -> &str;

    /// Stops the renewal and returns the fence: the row that a transaction under this lock must
    /// delete before it commits. Returns `None` for a lock without a row. After this call no
    /// renewal changes the row until [`resume_renewal`](Self::resume_renewal).
    fn begin_fenced_release(&mut self) -> impl Future<Output = Option<Fence>> + Send {
        async { None }
    }

    /// Starts the renewal again after [`begin_fenced_release`](Self::begin_fenced_release), for a
    /// transaction that did not commit.
    fn resume_renewal(&mut self) {}

    /// Frees the key. Resolves when another holder can lock it.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the lock was lost before, so that another holder may have the key;
    /// [`LockError::NotReleased`] if its row could not be deleted and remains until it expires.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the release.
    fn release(self) -> impl Future<Output = Result<(), LockError>> + Send;

    /// Frees the key without deleting the row, because a committed transaction has deleted it.
    /// `wanted` is `true` if another process waits for the key.
    fn mark_released(self, wanted: bool);
}

/// Returns `keys` sorted and without duplicates.
pub(crate) fn in_order<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}
