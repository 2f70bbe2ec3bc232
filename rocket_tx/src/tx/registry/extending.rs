//! The registry's methods for other libraries: steps of transactions, and the final response.

use std::borrow::Cow;

use super::begin_step::BeginStep;
use super::outstanding::Outstanding;
use super::response_plan::RepeatAdvice;
use crate::db::TransactionalDatabase;
use crate::tx::failure::Error;
use crate::tx::stored_response::StoredResponse;

impl Outstanding {
    /// Records that a step has failed, so that the handler cannot turn the failure into a success.
    pub(super) fn refused_by_step(&self, error: &Error) {
        // After a replay the stored response is sent, whatever the handler makes of the error.
        if !matches!(error, Error::Replayed) {
            self.fail(error.problem());
        }
    }

    /// Adds a step that runs when a transaction of `D` that may write begins in this request. A
    /// guard may begin it, or the settlement, if it is [required](Self::require).
    ///
    /// The step does not run in a transaction that has already begun, nor in one that only reads.
    ///
    /// ```
    /// # use rocket_tx::{Error, Outstanding, rocket_db_pools::{self, Database}, db::SqlitePool};
    /// # use rocket_tx::tx::{BeginStep, BorrowedTransaction};
    /// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
    /// struct DeferKeys;
    ///
    /// #[rocket::async_trait]
    /// impl BeginStep<Main> for DeferKeys {
    ///     async fn run(&self, mut transaction: BorrowedTransaction<'_, Main>) -> Result<(), Error> {
    ///         let connection = transaction.connection();
    ///         sqlx::query("PRAGMA defer_foreign_keys = ON").execute(connection).await?;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # fn example(outstanding: &Outstanding) -> Result<(), Error> {
    /// outstanding.on_begin(DeferKeys)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict. [`Error::Retrying`] beside the attempts of
    /// [`retrying`](crate::Begin::retrying).
    pub fn on_begin<D: TransactionalDatabase>(&self, step: impl BeginStep<D>) -> Result<(), Error> {
        self.state_of_attempt()?.steps.add(step);
        Ok(())
    }

    /// Makes the final response available to resources in `prepare`, through
    /// [`SettleContext::response`](super::SettleContext::response).
    ///
    /// A body of at most `limit` bytes, whose size is known, is read into memory before the commit,
    /// and then sent from there. Other bodies are not read. If this is called more than once, the
    /// largest limit counts.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict.
    pub fn capture_response(&self, limit: usize) -> Result<(), Error> {
        let _open = self.open_state()?;
        let mut plan = self.response_plan.lock();
        plan.capture_limit = plan.capture_limit.max(Some(limit));
        Ok(())
    }

    /// Sends `stored` instead of the response that the request makes, because an earlier request has
    /// done the work already. Everything in this request is rolled back.
    ///
    /// The response carries the `Transaction-Outcome` of the earlier request, `committed`. Headers
    /// that fairings have set remain. The hooks of `after_commit` do not run, those of
    /// `after_rollback` do. In the log, in metrics and for observers this request is rolled back.
    ///
    /// This may also be called while the request is settled: in a [`BeginStep`], or in a resource's
    /// `rollback`. The stored response is not sent if the request has panicked, has leaked a guard,
    /// or if it is not certain that it was rolled back.
    ///
    /// Returns [`Error::Replayed`], which the caller returns to its own caller.
    pub fn respond_with(&self, stored: StoredResponse) -> Error {
        self.mark_used();
        self.response_plan.lock().stored.get_or_insert(stored);
        Error::Replayed
    }

    /// Declares that the client can send the request again, and that this changes nothing twice in
    /// `D`. If the outcome is unknown, the problem that the client receives ends with `advice`,
    /// which says how to send it again. Then it says that nothing is done twice, or it names the
    /// other databases that may have been committed: their part may be done twice.
    pub fn advise_repeat<D: TransactionalDatabase>(&self, advice: impl Into<Cow<'static, str>>) {
        self.response_plan.lock().repeat_advice = Some(RepeatAdvice {
            database: D::NAME,
            advice: advice.into(),
        });
    }

    pub(in crate::tx) fn capture_limit(&self) -> Option<usize> {
        self.response_plan.lock().capture_limit
    }

    /// Whether a stored response is to be sent.
    pub(in crate::tx) fn is_replayed(&self) -> bool {
        self.response_plan.lock().stored.is_some()
    }

    pub(in crate::tx) fn take_stored_response(&self) -> Option<StoredResponse> {
        self.response_plan.lock().stored.take()
    }

    pub(in crate::tx) fn repeat_advice(&self) -> Option<RepeatAdvice> {
        self.response_plan.lock().repeat_advice.clone()
    }
}
