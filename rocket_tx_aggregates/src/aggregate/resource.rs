//! The resource that stores a request's staged events and releases its leases at settlement.

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
use super::stream::Append;
use crate::lock::{Fence, Hold, LeasePool, LeaseStore, LockError};

/// The leases and the staged events of a request in `D`, as a resource of the request.
///
/// The request's transaction of `D` stores the events and deletes the lease rows. On Postgres the
/// lease rows come last: a waiter in another process that finds such a row locked is therefore blocked
/// only until the COMMIT that follows. If a row is missing, everything is rolled back. After a rollback the
/// rows are deleted on the same connection, because on SQLite no other connection of this process
/// can write.
///
/// # Drop
///
/// If the resource is dropped before settlement, separate tasks release the leases.
pub(super) struct RequestAggregates<D: AggregateDatabase> {
    request: Arc<RequestLeases<D>>,
    leases: Vec<(LeaseOf<D>, Fence)>,
    /// For each lease whose row a transaction has deleted: whether another process waits for it.
    deleted: Vec<bool>,
}

impl<D: AggregateDatabase> RequestAggregates<D> {
    /// Joins the leases and events of `request` to its registry, on the first call only. If joining
    /// fails, the leases are released.
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

    /// Takes over the leases and stops their renewal. Returns the staged events.
    async fn take(&mut self) -> Vec<Append> {
        let taken = self.request.close();
        for mut lease in taken.leases {
            if let Some(fence) = lease.begin_fenced_release().await {
                self.leases.push((lease, fence));
            }
        }
        taken.staged
    }

    /// Lets waiters take the leases, after their rows were deleted: opens the gates, which are the
    /// in-process queues in front of the leases, and wakes waiters in other processes.
    fn open_gates(&mut self) {
        for ((lease, _), wanted) in self.leases.drain(..).zip(self.deleted.drain(..)) {
            lease.mark_released(wanted);
        }
    }

    /// Releases the leases with separate statements, in separate tasks. Waits for them for one
    /// second at most, so that the client does not wait for an unreachable database.
    async fn release(&mut self) {
        const LONGEST_WAIT: Duration = Duration::from_secs(1);

        let releases = self.leases.drain(..).map(|(lease, _)| lease.release());
        let released = timeout(LONGEST_WAIT, join_all(releases)).await;
        for error in released.into_iter().flatten().filter_map(Result::err) {
            tracing::debug!(%error, "a lease was not released; nothing was written under it");
        }
    }

    /// Deletes the lease rows on the connection of the transaction that was rolled back. Returns
    /// `false` if the request had no transaction of `D` that could write.
    async fn release_on_the_same_connection(
        &mut self,
        context: &mut SettleContext<'_>,
    ) -> Result<bool, rocket_tx::Error> {
        // On SQLite no other task of this process can write during the wait for a lock of another
        // process. So the wait is limited to one retry interval.
        let wait = WaitPolicy::QUEUE.busy_timeout(self.request.shared.locks.retry_interval());
        let Some(mut transaction) = context.begin_after_rollback::<D>(wait).await? else {
            return Ok(false);
        };
        let fences: Vec<&Fence> = self.leases.iter().map(|(_, fence)| fence).collect();
        let db = transaction.connection();
        let released =
            <<D::Pool as LeasePool>::Leases as LeaseStore>::release_within(db, &fences).await?;
        self.deleted.extend(released.iter().map(|it| it.wanted));
        // The deletion need not be durable: a row that a power cut brings back expires by itself.
        transaction.commit_without_waiting().await.map(drop)?;
        Ok(true)
    }
}

impl<D: AggregateDatabase> Drop for RequestAggregates<D> {
    /// Releases the leases of a request that was not settled. An aggregate that outlives the
    /// request has no lease any more, and cannot be committed.
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
        self.request.warn_about_discarded_events();
        if let Some((lease, _)) = self.leases.iter().find(|(lease, _)| lease.is_lost()) {
            return Err(LockError::Lost(lease.key().to_owned()).into());
        }
        // Without a transaction that can write, nothing was written under the leases.
        let transaction = context.transaction::<D>();
        let Some(mut transaction) = transaction.filter(|it| it.access() == Access::ReadWrite)
        else {
            return match staged.is_empty() {
                true => Ok(()),
                // Not expected: `append` has required a transaction that can write.
                false => Err(rocket_tx::Error::Weaker(D::NAME)),
            };
        };
        let writes = !staged.is_empty() || !self.leases.is_empty();
        let db = transaction.connection();
        let written = async {
            let fences: Vec<&Fence> = self.leases.iter().map(|(_, fence)| fence).collect();
            let released = self.request.shared.store.write(db, staged, &fences).await?;
            self.deleted.extend(released.iter().map(|it| it.wanted));
            Ok::<(), rocket_tx::Error>(())
        };
        written.instrument(tracing::debug_span!("append")).await?;
        if writes {
            transaction.mark_written();
        }
        // Another process can take the leases once their rows are gone. So this database commits
        // last, after the commits of all other databases.
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

    fn attempts_begin(&mut self) {
        self.request.attempts_begin();
    }

    /// Stays joined, so that the leases stay over the attempts.
    fn attempt_failed(&mut self) -> bool {
        self.request.attempt_failed();
        true
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
                tracing::debug!(%error, "leases could not be released on the request's connection; separate tasks release them");
                self.leases.clear();
            }
        }
        Ok(())
    }
}
