//! Read models that are written in the transaction of the events.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use super::definition::Aggregate;
use super::event::EventRecord;
use super::stream::Append;

/// Writes a read model of the aggregates of type `A`, in the transaction that stores their events.
///
/// `C` is the type of the connection. An error rolls back the whole transaction.
pub trait Projection<A, C>: Send + Sync + 'static {
    /// Updates the read model for `events`. `aggregate` is the state after them.
    fn project(
        &self,
        connection: &mut C,
        aggregate: &A,
        events: &[EventRecord],
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Updates the read model for several aggregates, whose events one transaction stores. `changes`
    /// is not empty, and has no aggregate twice.
    ///
    /// Calls [`project`](Self::project) for each. Override it if one statement can write several
    /// rows: then a commit of many aggregates costs no more round trips than that of one.
    fn project_all(
        &self,
        connection: &mut C,
        changes: &[Change<'_, A>],
    ) -> impl Future<Output = sqlx::Result<()>> + Send
    where
        A: Sync,
        C: Send,
    {
        async move {
            for Change { aggregate, events } in changes {
                self.project(connection, aggregate, events).await?;
            }
            Ok(())
        }
    }
}

/// A change of an aggregate, for a [`Projection`].
#[derive(Debug)]
pub struct Change<'a, A> {
    /// The state after the events.
    pub aggregate: &'a A,
    /// The new events, in order.
    pub events: &'a [EventRecord],
}

/// The projections of a store, in the order in which they run.
pub(super) struct Projections<C>(Arc<[Arc<dyn AnyProjection<C>>]>);

impl<C> Clone for Projections<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Default for Projections<C> {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl<C: Send + 'static> Projections<C> {
    pub(super) fn with<A: Aggregate, P: Projection<A, C>>(&self, projection: P) -> Self {
        let added: Arc<dyn AnyProjection<C>> =
            Arc::new(TypedProjection::<A, P>(projection, PhantomData));
        Self(self.0.iter().cloned().chain([added]).collect())
    }

    /// Runs all projections on the aggregates of `batch`, which has no stream twice.
    pub(super) async fn project(&self, connection: &mut C, batch: &[Append]) -> sqlx::Result<()> {
        for projection in &*self.0 {
            projection.project(connection, batch).await?;
        }
        Ok(())
    }
}

#[rocket::async_trait]
trait AnyProjection<C>: Send + Sync {
    /// Runs the projection on the aggregates of its type.
    async fn project(&self, connection: &mut C, batch: &[Append]) -> sqlx::Result<()>;
}

struct TypedProjection<A, P>(P, PhantomData<fn() -> A>);

#[rocket::async_trait]
impl<A: Aggregate, C: Send + 'static, P: Projection<A, C>> AnyProjection<C>
    for TypedProjection<A, P>
{
    async fn project(&self, connection: &mut C, batch: &[Append]) -> sqlx::Result<()> {
        let changes = batch.iter().filter_map(|append| {
            Some(Change {
                aggregate: append.aggregate.downcast_ref::<A>()?,
                events: &append.events,
            })
        });
        let changes: Vec<Change<'_, A>> = changes.collect();
        match changes.is_empty() {
            true => Ok(()),
            false => self.0.project_all(connection, &changes).await,
        }
    }
}
