//! [`Aggregates`]: the request guard, a repository that belongs to one request.

use std::any::type_name;
use std::collections::BTreeMap;
use std::sync::Arc;

use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Ignite, Rocket, Sentinel};
use rocket_tx::extend::{Lookup, attached, guard_failed, rank_of};
use rocket_tx::tx::{Outstanding, ReadOnly};
use rocket_tx::{Begin, RequestId, Tx};

use super::definition::Aggregate;
use super::error::AggregateError;
use super::event::EventRecord;
use super::initializer::{LoadObserver, Shared};
use super::leases::RequestLeases;
use super::order::Order;
use super::repository::{AsyncAggregateRepository, AsyncRepository, AsyncUnlockableRepository};
use super::resource::RequestAggregates;
use super::rows::AggregateDatabase;
use super::store::{load_all_from, load_from, page_from};
use super::stream::{Append, HeldLease, History};
use crate::lock::{Hold, in_order};

/// The aggregates of type `A` in the database `D`, for one request.
///
/// A commit *stages* events, which means that it keeps them until the request is settled. If the
/// response is a success, the request's own transaction of `D` stores them, together with snapshots
/// and read models. Otherwise they are discarded.
///
/// The same transaction releases the leases that `get` has taken. After a rollback they are
/// released at once. If a lease was lost, the request is rolled back and the client receives a 409.
///
/// # Leases before transactions
///
/// Load aggregates before you begin transactions. A request that waits for a lease should hold
/// nothing that other requests wait for. So a request does not wait for a lease while it has a
/// transaction or a `Read` of any database, or the lease of a key that sorts after the wanted one.
/// It gets the lease if the lease is free, and otherwise fails with a 503 at once.
///
/// A commit begins no transaction. It only registers that the transaction of `D` is required. This
/// transaction begins just before the request begins one of a database that is attached after `D`,
/// or else at settlement.
///
/// Loading reads through the request's open transaction of `D`, if there is one, and otherwise
/// through a separate connection. Drop your `Tx<D>` or `Read<D>` guard before you load; while you
/// hold one, loading fails.
///
/// # Drop
///
/// Dropping an aggregate without a commit releases its lease: at once if the request has no
/// connection, otherwise at settlement.
pub type Aggregates<D, A> = AsyncAggregateRepository<RequestRepository<D>, A>;

/// The event streams in the database `D`, for one request. Use it through [`Aggregates`].
pub struct RequestRepository<D: AggregateDatabase> {
    leases: Arc<RequestLeases<D>>,
    observer: Option<Box<dyn LoadObserver>>,
}

impl<D: AggregateDatabase> RequestRepository<D> {
    fn of(request: &Request<'_>) -> Result<Self, rocket_tx::Error> {
        let outstanding = Outstanding::of(request)?;
        let shared = request.rocket().state::<Arc<Shared<D>>>();
        let shared = shared.ok_or_else(no_aggregates::<D>)?;
        let pool: &D::Pool = attached::<D>(request)?;
        let rank = rank_of::<D>(pool)?;
        let order = request.local_cache(Arc::<Order>::default);
        let leases =
            request.local_cache(|| Arc::new(RequestLeases::new(outstanding, shared, rank, order)));
        Ok(Self {
            leases: Arc::clone(leases),
            observer: shared.observer_of(request),
        })
    }
}

fn no_aggregates<D>() -> rocket_tx::Error {
    let database = type_name::<D>();
    let reason = format!(
        "aggregates are not set up in the database `{database}`; add \
         `.attach(rocket_tx_aggregates::aggregate::init::<{database}>())` to the launch code"
    );
    rocket_tx::Error::NotSetUp(reason.into())
}

/// Dooms the request if a flush fails or is dropped half-way: the request must then roll back.
///
/// The transaction may contain only a part of the staged events, and must not be committed without
/// the rest.
struct FlushGuard<'a>(Option<&'a Outstanding>);

impl FlushGuard<'_> {
    fn doom_by(&self, error: &AggregateError) {
        // A conflict dooms the request here, before `drop` does: only the first doom counts.
        if let (AggregateError::Conflict(_), Some(outstanding)) = (error, self.0) {
            // This fails only if the verdict was reached already; then no doom can change it.
            let _settled = outstanding.doom(Status::Conflict, error.to_string());
        }
    }
}

impl Drop for FlushGuard<'_> {
    fn drop(&mut self) {
        if let Some(outstanding) = self.0 {
            let reason = "Events could not be stored. Nothing was changed.";
            let _settled = outstanding.doom(Status::InternalServerError, reason);
        }
    }
}

/// Reads through the request's open transaction, if there is one, and otherwise through a read-only
/// connection that is returned right after the read.
macro_rules! reading {
    ($leases:expr, |$db:ident| $work:expr) => {{
        let outstanding = &$leases.outstanding;
        let _turn = $leases.order.reading.lock().await;
        match Tx::<D, ReadOnly>::current_in(outstanding)? {
            Some(mut tx) => {
                let $db = &mut *tx;
                $work
            }
            None => {
                let mut lookup = Lookup::<D>::in_request(outstanding, $leases.pool()).await?;
                let $db = lookup.connection();
                let result = $work;
                if result.is_ok() {
                    lookup.finish();
                }
                result
            }
        }
    }};
}

impl<D: AggregateDatabase> AsyncRepository for RequestRepository<D> {
    async fn lease(&self, streams: &[&str]) -> Result<Vec<Option<HeldLease>>, AggregateError> {
        let outstanding = &self.leases.outstanding;
        outstanding.mark_used();
        let sorted = in_order(streams);
        let deadline = self.leases.shared.locks.deadline();
        let first = sorted.first().copied().unwrap_or_default();
        let _turn = deadline
            .timeout(first, outstanding.acquire_in_turn())
            .await?;
        let mut leases = BTreeMap::new();
        let parts = self.leases.parts(&sorted);
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let held = self.leases.lease(part, deadline).await?;
            // Join before the next wait: if that fails, settlement still releases these leases.
            RequestAggregates::join(&self.leases)?;
            leases.extend(part.iter().copied().zip(held));
        }
        let of = |stream: &&str| leases.get(*stream).cloned();
        Ok(streams.iter().map(of).collect())
    }

    async fn load(
        &self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> Result<History, AggregateError> {
        let mut history = reading!(self.leases, |db| {
            load_from(db, stream, snapshot_version).await
        })?;
        if let Some(staged) = self.leases.staged(stream) {
            history.events.extend(staged.events);
        }
        Ok(history)
    }

    async fn load_all(
        &self,
        streams: &[&str],
        snapshot_version: Option<u32>,
    ) -> Result<Vec<History>, AggregateError> {
        let mut histories = reading!(self.leases, |db| {
            load_all_from(db, streams, snapshot_version).await
        })?;
        for (stream, history) in streams.iter().zip(&mut histories) {
            if let Some(staged) = self.leases.staged(stream) {
                history.events.extend(staged.events);
            }
        }
        Ok(histories)
    }

    async fn loaded(&self, streams: &[&str]) {
        if let Some(observer) = &self.observer {
            for stream in streams {
                observer.loaded(stream).await;
            }
        }
    }

    async fn append(&self, mut batch: Vec<Append>) -> Result<(), AggregateError> {
        let request: RequestId = self.leases.outstanding.request_id();
        for event in batch.iter_mut().flat_map(|append| &mut append.events) {
            let id = request.to_string();
            event.metadata.insert("request_id".to_owned(), id);
        }
        batch.retain(|append| !append.events.is_empty());
        if batch.is_empty() {
            return Ok(());
        }
        self.leases.outstanding.require::<D>(self.leases.pool())?;
        RequestAggregates::join(&self.leases)?;
        self.leases.stage(batch)
    }

    async fn flush(&self) -> Result<(), AggregateError> {
        let begin = Begin::<D>::in_request(&self.leases.outstanding, self.leases.pool());
        let mut tx = begin.begin().await?;
        let staged = self.leases.flush();
        let mut guard = FlushGuard(Some(&self.leases.outstanding));
        let written = self.leases.shared.store.write(&mut tx, staged, &[]).await;
        match &written {
            Ok(_) => guard.0 = None,
            Err(error) => guard.doom_by(error),
        }
        written.map(drop)
    }

    async fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, AggregateError> {
        reading!(self.leases, |db| page_from(db, stream, after, limit).await)
    }

    fn snapshot_every(&self) -> u64 {
        self.leases.shared.store.snapshot_every()
    }
}

impl<D: AggregateDatabase> AsyncUnlockableRepository for RequestRepository<D> {
    /// Releases the lease now, unless the request still needs it. Settlement releases it if events
    /// of the stream are staged or flushed, or if the request has a connection.
    async fn unlock(&self, stream: &str) -> Result<(), AggregateError> {
        match self.leases.release_early(stream) {
            Some((lease, _done)) => Ok(lease.release().await?),
            None => Ok(()),
        }
    }
}

#[rocket::async_trait]
impl<'r, D: AggregateDatabase, A: Aggregate> FromRequest<'r> for Aggregates<D, A> {
    type Error = rocket_tx::Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, rocket_tx::Error> {
        match RequestRepository::of(request) {
            Ok(repository) => {
                repository.leases.outstanding.mark_wanted();
                Outcome::Success(Self::new(repository))
            }
            Err(error) => guard_failed(request, error),
        }
    }
}

impl<D: AggregateDatabase, A> Sentinel for Aggregates<D, A> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        let unfit = <Begin<D> as Sentinel>::abort(rocket);
        let missing = rocket.state::<Arc<Shared<D>>>().is_none();
        if missing {
            tracing::error!("{}", no_aggregates::<D>());
        }
        unfit || missing
    }
}
