//! The resource that stores the response of a request in the row of its key.

use std::borrow::Cow;
use std::sync::Arc;

use rocket_tx::Error;
use rocket_tx::tx::{Phase, Resource, SettleContext};

use crate::keyed::Keyed;
use crate::rows::{KeyDatabase, KeyRows};
use crate::stored;

/// Stores the response when the request is committed.
pub(crate) struct ResponseRow<D: KeyDatabase>(Arc<Keyed<D>>);

impl<D: KeyDatabase> ResponseRow<D> {
    /// Makes the request store its response when it is committed.
    pub(crate) fn join(keyed: &Arc<Keyed<D>>) -> Result<(), Error> {
        keyed.outstanding.join(Self(Arc::clone(keyed)))
    }
}

impl<D: KeyDatabase> Drop for ResponseRow<D> {
    fn drop(&mut self) {
        self.0.let_others_continue();
    }
}

#[rocket::async_trait]
impl<D: KeyDatabase> Resource for ResponseRow<D> {
    fn name(&self) -> Cow<'_, str> {
        format!("idempotency key in {}", D::NAME).into()
    }

    fn phase(&self) -> Phase {
        Phase::Release
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        // Both are there: `Keyed::start` has requested them.
        let saved = context.response().map(stored::save);
        let transaction = context.transaction::<D>();
        let (Some(saved), Some(mut transaction)) = (saved, transaction) else {
            return Err(Error::Weaker(D::NAME));
        };
        if !transaction.connection().save(&self.0.scope, &saved).await? {
            let reason = "the row of the idempotency key is gone; do not delete it in the handler";
            return Err(Error::Conflict(reason.into()));
        }
        transaction.mark_written();
        // The row says that all databases have committed.
        context.commit_last::<D>();
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.0.let_others_continue();
        Ok(())
    }

    fn attempt_failed(&mut self) -> bool {
        self.0.attempt_failed();
        true
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        if let Err(error) = self.0.look_again().await {
            tracing::debug!(%error, "an idempotency key could not be looked up after a rollback");
        }
        Ok(())
    }
}
