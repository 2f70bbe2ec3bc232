//! The transaction while code of the service works in it.

use super::{State, Transaction};
use crate::db::Session;

impl<S: Session> Transaction<S> {
    /// Runs `work` on the connection.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, or `work` panics, the transaction is rolled back by closing the
    /// connection: a statement may still be running on it.
    pub(crate) async fn run<T>(&mut self, work: impl AsyncFnOnce(&mut S::Connection) -> T) -> T {
        self.state = State::Busy;
        let result = work(self.session.connection()).await;
        self.state = State::Open;
        result
    }

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
