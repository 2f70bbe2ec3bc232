//! Leases and staged events, as a resource that is settled with the request.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rocket::futures::future::join_all;
use rocket_tx::db::{Access, WaitPolicy};
use rocket_tx::tx::{Phase, Resource, SettleContext};
use tokio::time::timeout;
use tracing::Instrument;

use super::leases::{LeaseOf, RequestLeases};
use super::rows::AggregateDatabase;
use super::store::release_within;
use super::stream::Append;
use crate::lock::{Fence, Hold, LeasePool, LeaseStore, LockError};

/// The leases and staged events of a request in `D`.
///
/// The lease rows are deleted in the transaction that stores the events, as its last statements: a
/// waiter whose statement meets one of them is kept for one round trip. If a row is not there, all
/// is rolled back. After a rollback they are deleted on the same connection, which on SQLite is the
/// one that writes.
///
/// Dropped unsettled, it leaves the leases to tasks that release them.
pub(super) struct RequestAggregates<D: AggregateDatabase> {
    request: Arc<RequestLeases<D>>,
    leases: Vec<(LeaseOf<D>, Fence)>,
    /// For each lease whose row a transaction has deleted: whether another process wants it.
    deleted: Vec<bool>,
}

impl<D: AggregateDatabase> RequestAggregates<D> {
    /// Makes `request` one of the request's resources, once. If that fails, its leases are
    /// released.
    pub(super) fn join(request: &Arc<RequestLeases<D>>) -> Result<(), rocket_tx::Error> {
        if !request.is_first_join() {
            return Ok(());
        }
        request.outstanding.join(Self {
            request: Arc::clone(request),
            leases: Vec::new(),
            deleted: Vec::new(),
        })
    }

    /// Takes the staged events, and stops the renewal of all leases.
    async fn take(&mut self) -> Vec<Append> {
        let taken = self.request.close();
        for mut lease in taken.leases {
            if let Some(fence) = lease.begin_fenced_release().await {
                self.leases.push((lease, fence));
            }
        }
        taken.staged
    }

    /// The rows are deleted: waiters may go on.
    fn open_gates(&mut self) {
        for ((lease, _), wanted) in self.leases.drain(..).zip(self.deleted.drain(..)) {
            lease.mark_released(wanted);
        }
    }

    /// By statements of their own. A client does not wait for a database that is gone: after a
    /// moment they go on by themselves.
    async fn release(&mut self) {
        const MOMENT: Duration = Duration::from_secs(1);

        let releases = self.leases.drain(..).map(|(lease, _)| lease.release());
        let released = timeout(MOMENT, join_all(releases)).await;
        for error in released.into_iter().flatten().filter_map(Result::err) {
            tracing::debug!(%error, "nothing was written under this lease");
        }
    }

    /// Returns whether the request had a transaction to do it on.
    async fn release_on_the_same_connection(
        &mut self,
        context: &mut SettleContext<'_>,
    ) -> Result<bool, rocket_tx::Error> {
        // No other task can write meanwhile, so no other process is waited for.
        let wait = WaitPolicy::QUEUE.busy_timeout(self.request.shared.locks.retry_interval());
        let Some(mut transaction) = context.begin_after_rollback::<D>(wait).await? else {
            return Ok(false);
        };
        for (_, Fence { key, token, .. }) in &self.leases {
            let db = transaction.connection();
            let released =
                <<D::Pool as LeasePool>::Leases as LeaseStore>::release_within(db, key, token)
                    .await?;
            self.deleted.push(released.wanted);
        }
        // A power cut ends all holders: it may bring the row back, which expires by itself.
        transaction.commit_without_waiting().await.map(drop)?;
        Ok(true)
    }
}

impl<D: AggregateDatabase> Drop for RequestAggregates<D> {
    /// Unsettled, it gives back what the request holds; aggregates that are kept somewhere find
    /// nothing more.
    fn drop(&mut self) {
        drop(self.request.close());
    }
}

#[rocket::async_trait]
impl<D: AggregateDatabase> Resource for RequestAggregates<D> {
    fn name(&self) -> Cow<'_, str> {
        format!("aggregates in {}", D::NAME).into()
    }

    fn phase(&self) -> Phase {
        Phase::Release
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), rocket_tx::Error> {
        let staged = self.take().await;
        if let Some((lease, _)) = self.leases.iter().find(|(lease, _)| lease.is_lost()) {
            return Err(LockError::Lost(lease.key().to_owned()).into());
        }
        // Through one that only reads nothing can be written, so nothing was.
        let transaction = context.transaction::<D>();
        let Some(mut transaction) = transaction.filter(|it| it.access() == Access::ReadWrite)
        else {
            return match staged.is_empty() {
                true => Ok(()),
                // It was required, so it is there.
                false => Err(rocket_tx::Error::Weaker(D::NAME)),
            };
        };
        let db = transaction.connection();
        let written = async {
            self.request.shared.store.write(db, &staged).await?;
            for (_, fence) in &self.leases {
                let released = release_within::<D::Pool>(db, fence).await?;
                self.deleted.push(released.wanted);
            }
            Ok::<(), rocket_tx::Error>(())
        };
        written.instrument(tracing::debug_span!("append")).await?;
        // Others may take the leases once they are gone: then everything else is certain.
        context.commit_last::<D>();
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), rocket_tx::Error> {
        match self.deleted.len() == self.leases.len() {
            true => self.open_gates(),
            false => self.release().await,
        }
        Ok(())
    }

    async fn rollback(&mut self, context: &mut SettleContext<'_>) -> Result<(), rocket_tx::Error> {
        drop(self.take().await);
        self.deleted.clear();
        if self.leases.is_empty() {
            return Ok(());
        }
        match self.release_on_the_same_connection(context).await {
            Ok(true) => self.open_gates(),
            Ok(false) => self.release().await,
            Err(error) => {
                tracing::debug!(%error, "leases are released on another connection");
                self.leases.clear();
            }
        }
        Ok(())
    }
}
