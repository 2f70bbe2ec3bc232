//! Transactions outside of requests: background jobs, start-up, command line tools, hooks.

use super::failure::Error;
use super::retry::Attempts;
use super::verdict::Outcome;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::db::UrlPool;
use crate::db::{
    BeginOptions, Ended, Session, Transaction, TransactionGuard, TransactionOptions,
    TransactionPool, within, work_in,
};

type GuardOf<P> = TransactionGuard<<P as TransactionPool>::Session>;

/// Implements `transaction` for a pool.
macro_rules! transactions {
    ($pool:ty) => {
        impl $pool {
            /// Runs `work` in a transaction, commits, and returns what `work` returned. Use it
            /// outside of requests: in background jobs, at start-up, in command line tools.
            ///
            /// `work` may run several times: after a conflict everything is rolled back, and the
            /// work is begun anew. Conflicts are serialization failures and deadlocks on Postgres,
            /// and on SQLite another process that has locked the file. They may come from a
            /// statement or from COMMIT. New attempts begin for at most 5 s, with random pauses in
            /// between. A COMMIT that got no reply is never repeated.
            ///
            /// The commit has the same proof as that of a request: if `work` has ignored the error
            /// of a statement, or has sent COMMIT itself, the error says so. When this returns
            /// `Ok`, the commit survives a power cut.
            ///
            /// ```no_run
            /// use rocket_tx::Error;
            /// use rocket_tx::db::SqlitePool;
            /// use rocket_tx::rocket_db_pools::{self, Database};
            ///
            /// #[derive(Database)]
            /// #[database("main")]
            /// struct Main(SqlitePool);
            ///
            /// async fn forget_old_sessions(main: &Main) -> Result<u64, Error> {
            ///     main.transaction(async |mut tx| {
            ///         let delete = sqlx::query("DELETE FROM sessions WHERE expires < unixepoch()");
            ///         Ok(delete.execute(&mut *tx).await?.rows_affected())
            ///     })
            ///     .await
            /// }
            /// ```
            ///
            /// An `async` closure works as long as it changes no captured variable: `work` may run
            /// several times, so such a change would be done several times too.
            ///
            /// In a task, use a clone of the pool: `let main = SqlitePool::clone(main)`. Shutdown
            /// waits for running transactions as it does for requests.
            ///
            /// # Errors
            ///
            /// The error of `work`, after a rollback. [`Error::Busy`] if the last attempt has met a
            /// conflict, or if no connection was free. [`Error::Unknown`] if COMMIT got no reply and
            /// the outcome cannot be determined. [`Error::Aborted`], [`Error::Ended`] and
            /// [`Error::Constraint`] if the commit was refused. [`Error::WaitsForItself`] on SQLite,
            /// within another transaction of the same database, or in a request that has one.
            ///
            /// # Cancellation
            ///
            /// If the future is dropped, or `work` panics, everything is rolled back by closing the
            /// connection. If COMMIT was already sent, the outcome is unknown.
            pub async fn transaction<T, F>(
                &self,
                work: impl FnMut(GuardOf<Self>) -> F,
            ) -> Result<T, Error>
            where
                F: Future<Output = Result<T, Error>> + Send,
            {
                run(self, TransactionOptions::new(), work).await
            }

            /// Does the same as [`transaction`](Self::transaction), with `options`.
            ///
            /// # Errors
            ///
            /// As [`transaction`](Self::transaction).
            pub async fn transaction_with<T, F>(
                &self,
                options: TransactionOptions,
                work: impl FnMut(GuardOf<Self>) -> F,
            ) -> Result<T, Error>
            where
                F: Future<Output = Result<T, Error>> + Send,
            {
                run(self, options, work).await
            }
        }
    };
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
transactions!(UrlPool);
#[cfg(feature = "sqlite")]
transactions!(crate::db::SqlitePool);
#[cfg(feature = "postgres")]
transactions!(crate::db::PostgresPool);

async fn run<P: TransactionPool, T, F: Future<Output = Result<T, Error>> + Send>(
    pool: &P,
    options: TransactionOptions,
    mut work: impl FnMut(GuardOf<P>) -> F,
) -> Result<T, Error> {
    // Shutdown closes the pool only when this is dropped.
    let _in_flight = (pool.attachment().get()).map(|attached| attached.in_flight.token());
    let mut attempts = Attempts::within(options.retry_within);
    loop {
        match once(pool, options.begin, &mut work).await {
            Ok(value) => return Ok(value),
            Err(error) => attempts.wait_after(error).await?,
        }
    }
}

/// Runs `work` once. After an error nothing is left of it, unless the error says otherwise.
async fn once<P: TransactionPool, T, F: Future<Output = Result<T, Error>> + Send>(
    pool: &P,
    options: BeginOptions,
    work: &mut impl FnMut(GuardOf<P>) -> F,
) -> Result<T, Error> {
    let name = (pool.attachment().get()).map_or("the database", |attached| attached.name);
    let transaction = pool.open(options).await?;
    let worked = within(pool.identity(), work_in(transaction, work)).await;
    let (mut transaction, result) = worked.map_err(|ended| match ended {
        Ended::RolledBack => Error::Leaked(vec![name.to_owned()]),
        Ended::Before | Ended::Unasked => Error::Ended { undone: false },
    })?;
    let value = match result {
        Ok(value) => value,
        Err(error) => return Err(roll_back(transaction, error).await),
    };
    match transaction.commit_without_waiting().await {
        Ok(durability) => {
            // Others can use the connection while this waits for the disk.
            drop(transaction);
            let durable = durability.wait().await;
            durable.map_err(|error| Error::of_commit(error, name))?;
            Ok(value)
        }
        Err(error) => Err(roll_back(transaction, Error::of_commit(error, name)).await),
    }
}

/// Rolls back after `error`. Returns the error to report: that of the rollback, if it shows that
/// something may have been committed.
async fn roll_back<S: Session>(mut transaction: Transaction<S>, error: Error) -> Error {
    let Err(rollback) = transaction.rollback().await else {
        return error;
    };
    let rollback = Error::from(rollback);
    match (error.outcome(), rollback.outcome()) {
        (Outcome::RolledBack, Outcome::Unknown) => {
            tracing::error!(%error, "the work of a transaction failed, and it may have sent COMMIT itself");
            rollback
        }
        _ => error,
    }
}
