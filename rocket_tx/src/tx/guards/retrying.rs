//! [`Begin::retrying`]: work that is begun anew after a conflict.

use std::any::type_name;
use std::time::Duration;

use rocket::http::Status;

use super::transaction::{Begin, Tx};
use crate::db::{TransactionOptions, TransactionalDatabase};
use crate::tx::failure::Error;
use crate::tx::registry::{Mode, Outstanding};
use crate::tx::retry::Attempts;

impl<D: TransactionalDatabase, M: Mode> Begin<D, M> {
    /// Begins the transaction and runs `work` in it. After a conflict, everything that the attempt
    /// has begun is rolled back, and `work` runs again in a new transaction.
    ///
    /// Conflicts are serialization failures and deadlocks on Postgres, and on SQLite another process
    /// that has locked the file. New attempts begin for at most 5 s, with random pauses in between.
    /// [`retrying_within`](Self::retrying_within) sets another limit.
    ///
    /// The attempt that succeeds is left open, and the response decides whether it is committed, as
    /// after [`begin`](Self::begin). An attempt that returns an error is always undone.
    ///
    /// ```
    /// use rocket::http::Status;
    /// use rocket_tx::db::PostgresPool;
    /// use rocket_tx::rocket_db_pools::{self, Database};
    /// use rocket_tx::{Begin, Error, Serializable};
    ///
    /// #[derive(Database)]
    /// #[database("main")]
    /// struct Main(PostgresPool);
    ///
    /// /// At least one doctor must stay on call.
    /// #[rocket::delete("/on-call/<name>")]
    /// async fn leave(name: &str, main: Begin<Main, Serializable>) -> Result<Status, Error> {
    ///     let has_left = main
    ///         .retrying(async |mut tx| {
    ///             let others: i64 = sqlx::query_scalar("SELECT count(*) FROM on_call WHERE name <> $1")
    ///                 .bind(name)
    ///                 .fetch_one(&mut *tx)
    ///                 .await?;
    ///             if others > 0 {
    ///                 sqlx::query("DELETE FROM on_call WHERE name = $1").bind(name).execute(&mut *tx).await?;
    ///             }
    ///             Ok(others > 0)
    ///         })
    ///         .await?;
    ///     Ok(if has_left { Status::NoContent } else { Status::Conflict })
    /// }
    /// ```
    ///
    /// # What an attempt undoes
    ///
    /// The transactions of all databases, also those that the closure has begun with other guards;
    /// staged events of aggregates; resources that have joined; hooks; a doom. Leases stay. What the
    /// closure does elsewhere, such as a call of another service, is done again in each attempt. An
    /// `async` closure that changes a captured variable does not compile.
    ///
    /// Load aggregates inside the closure: one that was changed by a failed attempt still has these
    /// changes in memory.
    ///
    /// # Conflicts at the commit
    ///
    /// At SERIALIZABLE, Postgres may report a conflict as late as at COMMIT. At the end of `work`
    /// this library queries the server whether such a conflict is already known, so that most of
    /// them lead to a new attempt. If the other transaction commits after that, the client receives
    /// a 503: the closure has returned, and cannot run again.
    ///
    /// While there are such conflicts, the requests of one process go one after the other from that
    /// query to their COMMIT. A request waits for its turn for 1 s at most.
    ///
    /// # Beside the attempts
    ///
    /// Until this returns, code that does not belong to `work` can neither use transactions of the
    /// request nor add resources or hooks: a failed attempt would undo that too. It gets
    /// [`Error::Retrying`]. This includes tasks that `work` spawns.
    ///
    /// # Errors
    ///
    /// The error of `work`. After the limit, the last conflict: [`Error::Busy`] (503).
    /// [`Error::BegunBefore`] if the request already has a transaction, of any database: what it has
    /// done there could not be repeated. [`Error::Retrying`] if the request has called it already,
    /// and it has not returned. The errors of [`begin`](Self::begin).
    ///
    /// # Cancellation
    ///
    /// If the future is dropped half-way, or `work` panics, the request is doomed: everything will be
    /// rolled back. The same applies if the response is ready before it has returned, because a
    /// spawned task runs it.
    pub async fn retrying<T, F>(&self, work: impl FnMut(Tx<D, M>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        self.retrying_within(TransactionOptions::RETRY_WITHIN, work)
            .await
    }

    /// Does the same as [`retrying`](Self::retrying). No attempt begins later than `limit` after the
    /// call. An attempt that runs then is not interrupted.
    ///
    /// # Errors
    ///
    /// As [`retrying`](Self::retrying).
    pub async fn retrying_within<T, F>(
        &self,
        limit: Duration,
        mut work: impl FnMut(Tx<D, M>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let before = self.outstanding.attempts_begin(D::NAME)?;
        let mut attempts = Attempts::within(limit);
        let running = Running {
            outstanding: &self.outstanding,
            has_ended: false,
        };
        loop {
            let attempt = self.outstanding.attempt(self.once(&mut work));
            let error = match attempt.await {
                Ok(value) => {
                    running.end();
                    return Ok(value);
                }
                Err(error) => error,
            };
            if let Err(undoing) = self.outstanding.undo(&before).await {
                tracing::warn!(%error, "an attempt failed and could not be undone");
                return Err(undoing);
            }
            if let Err(error) = attempts.wait_after(error).await {
                running.end();
                return Err(error);
            }
        }
    }

    async fn once<T, F>(&self, work: &mut impl FnMut(Tx<D, M>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let tx = self.begin_for(type_name::<Self>()).await?;
        let value = work(tx).await?;
        self.outstanding.detect_conflicts().await?;
        Ok(value)
    }
}

/// The attempts while they are running. If it is dropped before they have ended, the request is
/// doomed: what an attempt has done until then must not be committed.
struct Running<'a> {
    outstanding: &'a Outstanding,
    has_ended: bool,
}

impl Running<'_> {
    fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let reason = "The work of this request was abandoned half-way. Nothing was changed.";
            // This fails only after the verdict, and then nothing more is committed.
            let _settled = (self.outstanding).doom(Status::InternalServerError, reason);
        }
        self.outstanding.attempts_end();
    }
}
