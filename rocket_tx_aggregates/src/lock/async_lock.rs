//! The interface of every lock, in memory or in a database.

use std::future::Future;
use std::sync::Arc;

use super::LockError;
use super::store::Fence;

/// A lock on one key.
///
/// All methods are lazy: nothing happens before the first poll. A future that is dropped leaves
/// the key as free as if it had never been asked for, as soon as what it had begun has ended.
pub trait AsyncLock: Send + Sync {
    /// Waits until the key is ours.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] past the manager's longest wait.
    fn lock(&self) -> impl Future<Output = Result<(), LockError>> + Send;

    /// Takes the key if it is free now; returns whether it did.
    ///
    /// # Errors
    ///
    /// [`LockError::Database`] where the lock lives in one that fails.
    fn try_lock(&self) -> impl Future<Output = Result<bool, LockError>> + Send;

    /// Frees the key, if this process holds it. Resolves when others can have it.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if another holder has the key by now; [`LockError::NotReleased`] if its
    /// row could not be deleted, and expires by itself.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop what has begun: the key becomes free all the same.
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
    /// The lock on a key, to be locked and unlocked by hand.
    type Lock: AsyncLock + 'static;

    /// A locked key that is freed when it is dropped.
    type Hold: Hold;

    /// The lock on `key`. All handles on a key share its state while it is held, waited for, or a
    /// handle exists.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`] for a key that breaks the rule: 1 to 300 bytes, no control characters.
    fn get_lock(&self, key: &str) -> Result<Arc<Self::Lock>, LockError>;

    /// Waits for all of `keys`, within one longest wait, in sorted order, so that two such calls
    /// never wait for each other. Duplicates count once.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`], [`LockError::TimedOut`], [`LockError::Database`]; those that were taken
    /// are freed.
    ///
    /// # Cancellation
    ///
    /// Dropping the future frees what was taken, and what is under way as soon as it is there.
    fn hold_all(
        &self,
        keys: &[&str],
    ) -> impl Future<Output = Result<Vec<Self::Hold>, LockError>> + Send;
}

/// A locked key. Dropping it frees the key, in a task of its own where that takes a statement.
pub trait Hold: Send + 'static {
    /// The locked key.
    fn key(&self) -> &str;

    /// Stops renewal, and returns the row that a transaction which writes under this lock must find
    /// and delete; `None` for a lock without a row. No renewal comes between the transaction's
    /// statements.
    fn begin_fenced_release(&mut self) -> impl Future<Output = Option<Fence>> + Send {
        async { None }
    }

    /// Undoes [`begin_fenced_release`](Self::begin_fenced_release) after a transaction that did not
    /// commit: the row is renewed again.
    fn resume_renewal(&mut self) {}

    /// Frees the key; resolves when others can have it.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if another holder has it by now; [`LockError::NotReleased`] if its row
    /// could not be deleted, and expires by itself.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing: the release goes on.
    fn release(self) -> impl Future<Output = Result<(), LockError>> + Send;

    /// Frees the key without a statement: a transaction that has committed has deleted the row.
    /// `wanted`: another process waits for it.
    fn mark_released(self, wanted: bool);
}

/// Sorted, each once.
pub(crate) fn in_order<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}
