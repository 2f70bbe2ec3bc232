//! The transaction while code of the service works in it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

use super::{State, Transaction};
use crate::db::{Ended, Session, executor};

/// The connection inside a transaction that runs outside of requests, as the work of `transaction`
/// receives it.
///
/// It dereferences to sqlx's connection, and is an [`Executor`](sqlx::Executor) itself: both
/// `.execute(&mut *tx)` and `.execute(&mut tx)` work. With a [`UrlPool`](crate::db::UrlPool) it
/// dereferences to a [`UrlConnection`](crate::db::UrlConnection), on which
/// [`with_backend!`](crate::with_backend) runs statements. Drop it before the work ends: if it is kept,
/// the transaction is rolled back.
pub struct TransactionGuard<S: Session>(
    OwnedMappedMutexGuard<Option<Transaction<S>>, S::Connection>,
);

impl<S: Session> fmt::Debug for TransactionGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionGuard").finish_non_exhaustive()
    }
}

executor!(TransactionGuard<S>, of S, where S: Session);

impl<S: Session> Deref for TransactionGuard<S> {
    type Target = S::Connection;

    fn deref(&self) -> &S::Connection {
        &self.0
    }
}

impl<S: Session> DerefMut for TransactionGuard<S> {
    fn deref_mut(&mut self) -> &mut S::Connection {
        &mut self.0
    }
}

/// Runs `work` in the transaction, and returns the transaction with the result.
///
/// # Errors
///
/// If `work` has kept its guard: whether the transaction was rolled back.
///
/// # Cancellation
///
/// If the future is dropped, or `work` panics, the transaction is rolled back by closing the
/// connection: a statement may still be running on it.
pub(crate) async fn work_in<S: Session, T, F: Future<Output = T> + Send>(
    mut transaction: Transaction<S>,
    work: impl FnOnce(TransactionGuard<S>) -> F,
) -> Result<(Transaction<S>, T), Ended> {
    transaction.state = State::Busy;
    let ending = transaction.ending();
    let slot = Arc::new(Mutex::new(Some(transaction)));
    let locked = Arc::clone(&slot).lock_owned().await;
    let mapped = OwnedMutexGuard::try_map(locked, |transaction| {
        transaction.as_mut().map(Transaction::connection)
    });
    let Ok(guard) = mapped else {
        return Err(Ended::RolledBack); // does not happen: nothing else has the slot
    };
    let result = work(TransactionGuard(guard)).await;
    let returned = slot.try_lock().ok().and_then(|mut slot| slot.take());
    match returned {
        Some(mut transaction) => {
            transaction.state = State::Open;
            Ok((transaction, result))
        }
        None => Err(ending.end().await),
    }
}

impl<S: Session> Transaction<S> {
    /// Returns an error if it is already certain that the transaction cannot commit, because of a
    /// conflict with another one.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the connection is closed with the transaction.
    pub(crate) async fn detect_conflict(&mut self) -> sqlx::Result<()> {
        self.state = State::Busy;
        let result = self.session.detect_conflict().await;
        self.state = State::Open;
        result
    }

    /// Records that the transaction belongs to a request: it stays open until the request is
    /// settled.
    pub(crate) fn hold_for_request(&mut self) {
        self.session.hold_for_request();
    }
}
