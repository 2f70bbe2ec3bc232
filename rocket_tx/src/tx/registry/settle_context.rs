//! The transactions of a request, as a resource may use them while the request is settled.
//!
//! Settlement alone ends a request's transactions: a success would otherwise be told of one that a
//! resource has rolled back. So a resource gets no transaction to keep, exchange or end, but a view of
//! one.

use std::any::Any;

use rocket_db_pools::Database;

use super::open_transaction::{ConnectionOf, OpenTransaction};
use super::resource::SettleContext;
use crate::db::{
    Access, BeginOptions, Durability, Isolation, Transaction, TransactionPool,
    TransactionalDatabase, WaitPolicy,
};
use crate::tx::failure::Error;

type TransactionOf<D> = Transaction<<<D as Database>::Pool as TransactionPool>::Session>;

/// An open transaction of the request: statements can be run in it, and nothing else.
///
/// From [`SettleContext::transaction`].
///
/// ```
/// # use rocket_tx::{Error, rocket_db_pools::{self, Database}, db::SqlitePool, tx::SettleContext};
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// async fn prepare(context: &mut SettleContext<'_>) -> Result<(), Error> {
///     if let Some(mut transaction) = context.transaction::<Main>() {
///         sqlx::query("INSERT INTO outbox (text) VALUES ('hello')")
///             .execute(transaction.connection())
///             .await?;
///     }
///     Ok(())
/// }
/// ```
///
/// It cannot be ended here, nor be exchanged for another one:
///
/// ```compile_fail
/// # use rocket_tx::{Error, rocket_db_pools::{self, Database}, db::SqlitePool, tx::SettleContext};
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// async fn prepare(context: &mut SettleContext<'_>) {
///     let mut transaction = context.transaction::<Main>().unwrap();
///     let _ = transaction.commit_without_waiting().await;
/// }
/// ```
///
/// ```compile_fail
/// # use rocket_tx::{Error, rocket_db_pools::{self, Database}, db::SqlitePool, tx::SettleContext};
/// # use rocket_tx::db::{BeginOptions, TransactionPool};
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// async fn prepare(context: &mut SettleContext<'_>, pool: SqlitePool, options: BeginOptions) {
///     let mut other = pool.open(options).await.unwrap();
///     let mut transaction = context.transaction::<Main>().unwrap();
///     std::mem::swap(&mut transaction, &mut other);
/// }
/// ```
pub struct BorrowedTransaction<'a, D: TransactionalDatabase>(&'a mut TransactionOf<D>);

impl<D: TransactionalDatabase> BorrowedTransaction<'_, D> {
    /// Whether it may write.
    pub fn access(&self) -> Access {
        self.0.access()
    }

    /// Its connection, to run statements on. One that ends the transaction, or takes its connection
    /// away, makes the request fail.
    pub fn connection(&mut self) -> &mut ConnectionOf<D> {
        self.0.connection()
    }
}

/// A transaction of its own, begun on the connection of one that was rolled back.
///
/// From [`SettleContext::begin_after_rollback`]. Dropped uncommitted, it is rolled back when the settlement
/// is over; until then no other resource can begin one of the same database.
pub struct AfterRollback<'a, D: TransactionalDatabase>(&'a mut TransactionOf<D>);

impl<D: TransactionalDatabase> AfterRollback<'_, D> {
    /// Its connection, to run statements on.
    pub fn connection(&mut self) -> &mut ConnectionOf<D> {
        self.0.connection()
    }

    /// Commits. A power cut may undo it until [`Durability::wait`] returns.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if it may have been committed all the same; [`Error::Ended`] if a statement
    /// had ended it; after any other it was not.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop a COMMIT that was sent: what became of it is unknown.
    pub async fn commit_without_waiting(self) -> Result<Durability, Error> {
        let committed = self.0.commit_without_waiting().await;
        committed.map_err(|error| Error::of_commit(error, D::NAME))
    }
}

impl SettleContext<'_> {
    /// The request's open transaction of `D`, if it has one; a resource that needs one says so with
    /// [`Outstanding::require`](crate::tx::Outstanding::require).
    ///
    /// The statements that run in it are committed or rolled back with the rest. In `prepare` it is
    /// open; in `rollback` it is over, unless the resource is a database that joined before `D`.
    pub fn transaction<D: TransactionalDatabase>(&mut self) -> Option<BorrowedTransaction<'_, D>> {
        let (_, open) = self.find::<D>()?;
        let transaction = Some(open.transaction()).filter(|it| it.is_open());
        transaction.map(BorrowedTransaction)
    }

    /// In `rollback`: begins a transaction that writes, on the connection of the request's transaction
    /// of `D`, which is over. For what must be taken back by a statement, such as the row of a lease:
    /// on SQLite the request has the only connection that writes. `None` if the request has no
    /// transaction of `D` that may write.
    ///
    /// The request stays rolled back whatever is committed here. `wait` bounds the wait for a lock
    /// of another process on SQLite.
    ///
    /// # Errors
    ///
    /// [`Error::NotOver`] unless the request's transaction was rolled back before; what BEGIN meets.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the connection is closed when the settlement is over.
    pub async fn begin_after_rollback<D: TransactionalDatabase>(
        &mut self,
        wait: WaitPolicy,
    ) -> Result<Option<AfterRollback<'_, D>>, Error> {
        let found = self.find::<D>().map(|(_, open)| open.transaction());
        let Some(transaction) = found.filter(|it| it.access() == Access::ReadWrite) else {
            return Ok(None);
        };
        if !transaction.is_over() {
            return Err(Error::NotOver(D::NAME));
        }
        let options = BeginOptions {
            isolation: Isolation::Default,
            access: Access::ReadWrite,
            wait,
        };
        transaction.begin_again(options).await?;
        Ok(Some(AfterRollback(transaction)))
    }

    /// Has the transaction of `D` committed after those of all other databases, because it carries
    /// rows that must not be gone before the rest is certain. The last call counts.
    pub fn commit_last<D: TransactionalDatabase>(&mut self) {
        if let Some(index) = self.find::<D>().map(|(index, _)| index) {
            *self.last = Some(index);
        }
    }

    fn find<D: TransactionalDatabase>(&mut self) -> Option<(usize, &mut OpenTransaction<D>)> {
        self.others
            .iter_mut()
            .enumerate()
            .find_map(|(index, resource)| {
                let resource: &mut dyn Any = &mut **resource.as_mut()?;
                Some((index, resource.downcast_mut()?))
            })
    }
}
