//! Access of resources to the transactions of a request while it is settled.
//!
//! Only settlement may end a request's transactions. Otherwise the response could report a success
//! for a transaction that a resource has rolled back. Therefore a resource only gets a view of a
//! transaction, which it cannot keep, exchange or end.

use std::any::Any;

use rocket_db_pools::Database;

use super::open_transaction::OpenTransaction;
use super::resource::SettleContext;
use crate::db::{
    Access, BeginOptions, ConnectionOf, Durability, Transaction, TransactionPool,
    TransactionalDatabase, WaitPolicy,
};
use crate::tx::failure::Error;

type TransactionOf<D> = Transaction<<<D as Database>::Pool as TransactionPool>::Session>;

/// An open transaction of the request. A resource can run statements in it, and can do nothing else
/// with it.
///
/// Returned by [`SettleContext::transaction`], and passed to a [`BeginStep`](super::BeginStep).
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
/// It cannot be ended, nor exchanged for another one:
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
pub struct BorrowedTransaction<'a, D: TransactionalDatabase>(pub(super) &'a mut TransactionOf<D>);

impl<D: TransactionalDatabase> BorrowedTransaction<'_, D> {
    /// Whether the transaction may write.
    pub fn access(&self) -> Access {
        self.0.access()
    }

    /// The connection of the transaction, to run statements on. If a statement ends the
    /// transaction, or if the connection is replaced by another one, the request fails.
    pub fn connection(&mut self) -> &mut ConnectionOf<D> {
        self.0.connection()
    }

    /// Says that the caller has written in the transaction. For libraries: it saves a request with
    /// several databases a query to Postgres, whether the transaction has written.
    ///
    /// If the transaction has written nothing after all, no promise is broken: it takes part in the
    /// commit as if it had written.
    ///
    /// ```
    /// # use rocket_tx::{Error, rocket_db_pools::{self, Database}, db::SqlitePool, tx::SettleContext};
    /// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
    /// async fn prepare(context: &mut SettleContext<'_>) -> Result<(), Error> {
    ///     if let Some(mut transaction) = context.transaction::<Main>() {
    ///         sqlx::query("INSERT INTO outbox (text) VALUES ('hello')")
    ///             .execute(transaction.connection())
    ///             .await?;
    ///         transaction.mark_written();
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn mark_written(&mut self) {
        self.0.mark_written();
    }
}

/// A separate transaction, begun on the connection of one that was rolled back.
///
/// Returned by [`SettleContext::begin_after_rollback`]. If it is dropped uncommitted, it is rolled
/// back when the settlement has ended. Until then, no other resource can begin a separate
/// transaction of the same database.
pub struct AfterRollback<'a, D: TransactionalDatabase>(&'a mut TransactionOf<D>);

impl<D: TransactionalDatabase> AfterRollback<'_, D> {
    /// The connection of the transaction, to run statements on.
    pub fn connection(&mut self) -> &mut ConnectionOf<D> {
        self.0.connection()
    }

    /// Commits. Until [`Durability::wait`] returns, a power cut may undo the commit.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if the transaction may have been committed. [`Error::Ended`] if a
    /// statement had already ended it. After any other error it was not committed.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop a COMMIT that was sent. Its outcome is then unknown.
    pub async fn commit_without_waiting(self) -> Result<Durability, Error> {
        let committed = self.0.commit_without_waiting().await;
        committed.map_err(|error| Error::of_commit(error, D::NAME))
    }
}

impl SettleContext<'_> {
    /// Returns the request's open transaction of `D`, if it has one. A resource that needs the
    /// transaction declares this with [`Outstanding::require`](crate::tx::Outstanding::require).
    ///
    /// The statements that a resource runs in it are committed or rolled back with all others.
    /// During `prepare` the transaction is open. During `rollback` it has ended, and `None` is
    /// returned, unless the calling resource is in [`Phase::Database`](crate::tx::Phase::Database)
    /// and joined before `D`.
    pub fn transaction<D: TransactionalDatabase>(&mut self) -> Option<BorrowedTransaction<'_, D>> {
        let (_, open) = self.find::<D>()?;
        let transaction = Some(open.transaction()).filter(|it| it.is_open());
        transaction.map(BorrowedTransaction)
    }

    /// Begins a separate transaction that may write, on the connection of the request's transaction
    /// of `D`. Call it in [`rollback`](super::Resource::rollback), when the request's transaction
    /// has ended. Returns `None` if the request has no transaction of `D` that may write.
    ///
    /// Use it if an undo needs a statement, for example to delete the row of a lease. On SQLite
    /// there is no other way, because the request holds the only connection that writes.
    ///
    /// The request itself stays rolled back, also if the separate transaction is committed. On
    /// SQLite, `wait` limits the wait for a lock of another process.
    ///
    /// # Errors
    ///
    /// [`Error::NotOver`] if the request's transaction has not been rolled back yet. The errors of
    /// BEGIN.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the connection is closed when the settlement has ended.
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
            wait,
            ..BeginOptions::default()
        };
        transaction.begin_again(options).await?;
        Ok(Some(AfterRollback(transaction)))
    }

    /// Commits the transaction of `D` after those of all other databases. Use this if the
    /// transaction deletes rows that must exist until the other commits are certain. If
    /// `commit_last` is called more than once in a request, the last call counts.
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
