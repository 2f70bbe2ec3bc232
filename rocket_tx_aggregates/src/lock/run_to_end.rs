//! Work that runs to its end, also if the future that waits for it is dropped.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use rocket::futures::future::BoxFuture;
use tokio::runtime::Handle;

use super::store::LeaseStore;

/// A future that continues in a separate task when it is dropped before its end.
///
/// Dropping a future does not recall a statement that was already sent. The work must therefore see
/// the reply. As long as its caller waits, it runs in the caller's task: a task of its own for each
/// statement would cost two switches between tasks.
///
/// The result of work that has no caller any more is dropped. The result of a successful take is
/// the lease, which is then released.
pub(super) struct RunToEnd<S: LeaseStore, T: Send + 'static> {
    /// `None` after the end.
    work: Option<BoxFuture<'static, T>>,
    store: S,
    /// Runs the rest of the work, whichever thread drops this value.
    runtime: Handle,
}

impl<S: LeaseStore, T: Send + 'static> RunToEnd<S, T> {
    /// Nothing happens before the first poll, but from now on the work runs to its end.
    pub(super) fn new(store: S, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            work: Some(Box::pin(work)),
            store,
            runtime: Handle::current(),
        }
    }
}

// No part of it is pinned in place.
impl<S: LeaseStore, T: Send + 'static> Unpin for RunToEnd<S, T> {}

impl<S: LeaseStore, T: Send + 'static> Future for RunToEnd<S, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else {
            // Not expected: the future has returned its result already.
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<S: LeaseStore, T: Send + 'static> Drop for RunToEnd<S, T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            // If the runtime has ended, the task does not run.
            let _inside = self.runtime.enter();
            self.store.spawn(async move { drop(work.await) });
        }
    }
}
