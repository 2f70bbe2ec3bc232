//! Read models that are written in the transaction of the events.

use std::any::{Any, TypeId};
use std::collections::HashMap;
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
}

/// The projections of a store, by the type of the aggregate.
pub(super) struct Projections<C>(Arc<ByType<C>>);

type ByType<C> = HashMap<TypeId, Vec<Arc<dyn AnyProjection<C>>>>;

impl<C> Clone for Projections<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Default for Projections<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C: Send + 'static> Projections<C> {
    pub(super) fn with<A: Aggregate, P: Projection<A, C>>(&self, projection: P) -> Self {
        let mut all: ByType<C> = (*self.0).clone();
        all.entry(TypeId::of::<A>())
            .or_default()
            .push(Arc::new(TypedProjection::<A, P>(projection, PhantomData)));
        Self(Arc::new(all))
    }

    pub(super) async fn project(&self, connection: &mut C, append: &Append) -> sqlx::Result<()> {
        let aggregate = &*append.aggregate;
        for projection in self.0.get(&aggregate.type_id()).into_iter().flatten() {
            projection
                .project(connection, aggregate, &append.events)
                .await?;
        }
        Ok(())
    }
}

#[rocket::async_trait]
trait AnyProjection<C>: Send + Sync {
    async fn project(
        &self,
        connection: &mut C,
        aggregate: &(dyn Any + Send + Sync),
        events: &[EventRecord],
    ) -> sqlx::Result<()>;
}

struct TypedProjection<A, P>(P, PhantomData<fn() -> A>);

#[rocket::async_trait]
impl<A: Aggregate, C: Send + 'static, P: Projection<A, C>> AnyProjection<C>
    for TypedProjection<A, P>
{
    async fn project(
        &self,
        connection: &mut C,
        aggregate: &(dyn Any + Send + Sync),
        events: &[EventRecord],
    ) -> sqlx::Result<()> {
        match aggregate.downcast_ref::<A>() {
            Some(aggregate) => self.0.project(connection, aggregate, events).await,
            // Unreachable: the projections are looked up by the type of the aggregate.
            None => Ok(()),
        }
    }
}
