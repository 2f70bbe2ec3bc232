//! Steps that run when a transaction that writes begins.

use std::any::{Any, TypeId};
use std::sync::Arc;

use rocket_db_pools::Database;

use super::settle_context::BorrowedTransaction;
use crate::db::{Transaction, TransactionPool, TransactionalDatabase};
use crate::tx::failure::Error;

type TransactionOf<D> = Transaction<<<D as Database>::Pool as TransactionPool>::Session>;

/// A step that runs at the beginning of a request's transaction of `D`, before any statement of the
/// handler. Added with [`Outstanding::on_begin`](super::Outstanding::on_begin).
#[rocket::async_trait]
pub trait BeginStep<D: TransactionalDatabase>: Send + Sync + 'static {
    /// Runs the step in the transaction that has just begun.
    ///
    /// # Errors
    ///
    /// After an error the transaction is rolled back, and the guard that wanted it receives the
    /// error. The request cannot be committed any more, also if the handler ignores the error.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the transaction is rolled back by closing its connection.
    async fn run(&self, transaction: BorrowedTransaction<'_, D>) -> Result<(), Error>;
}

/// The steps of a request, in the order in which they were added.
#[derive(Clone, Default)]
pub(super) struct BeginSteps(Vec<(TypeId, Arc<dyn Any + Send + Sync>)>);

impl BeginSteps {
    pub(super) fn add<D: TransactionalDatabase>(&mut self, step: impl BeginStep<D>) {
        let step: Arc<dyn BeginStep<D>> = Arc::new(step);
        self.0.push((TypeId::of::<D>(), Arc::new(step)));
    }

    /// Runs the steps of `D` in its transaction.
    pub(super) async fn run<D: TransactionalDatabase>(
        &self,
        transaction: &mut TransactionOf<D>,
    ) -> Result<(), Error> {
        let database = TypeId::of::<D>();
        let steps = self.0.iter().filter(|(known, _)| *known == database);
        for step in steps.filter_map(|(_, step)| step.downcast_ref::<Arc<dyn BeginStep<D>>>()) {
            let mut running = Running::<D> {
                transaction,
                has_ended: false,
            };
            let result = step.run(BorrowedTransaction(running.transaction)).await;
            running.has_ended = true;
            result?;
        }
        Ok(())
    }
}

/// A step that is running. If it is dropped before the step has ended, a statement may be running
/// on the connection, so the connection must not be used again.
struct Running<'a, D: TransactionalDatabase> {
    transaction: &'a mut TransactionOf<D>,
    has_ended: bool,
}

impl<D: TransactionalDatabase> Drop for Running<'_, D> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.transaction.abandon();
        }
    }
}
