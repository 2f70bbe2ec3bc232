//! The guard: a repository that belongs to a request.

use std::any::type_name;
use std::collections::BTreeMap;
use std::sync::Arc;

use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Ignite, Rocket, Sentinel};
use rocket_tx::extend::{attached, guard_failed, rank_of};
use rocket_tx::tx::{Outstanding, ReadOnly};
use rocket_tx::{Begin, Read, RequestId, Tx};

use super::definition::Aggregate;
use super::error::Error;
use super::event::EventRecord;
use super::initializer::{LoadObserver, Shared};
use super::leases::RequestLeases;
use super::order::Order;
use super::repository::{AsyncAggregateRepository, AsyncRepository, AsyncUnlockableRepository};
use super::resource::RequestAggregates;
use super::rows::AggregateDatabase;
use super::store::{load_from, page_from};
use super::stream::{Append, HeldLease, History};
use crate::lock::{Hold, in_order};

/// The aggregates of type `A` in the database `D`, for one request.
///
/// A commit *stages* events: they are stored in the request's own transaction of `D`, together with
/// snapshots and read models, if the response is a success, and forgotten otherwise. The
/// leases of what was loaded with `get` are released by that same transaction; after a rollback
/// they are released at once. A lease that was lost meanwhile makes the answer a 409.
///
/// # Leases before transactions
///
/// Load aggregates before you begin transactions: a request that waits for a lease should hold
/// nothing that others wait for. A request that has a transaction or a `Read`, of whatever
/// database, or the lease of a key that sorts behind, gets a lease that is free and otherwise a 503
/// at once. Nothing is begun by committing: the transaction begins before that of the next database
/// that is attached behind `D`, or when the request is settled.
///
/// Loading reads through the request's transaction of `D`, if it has one, and otherwise through a
/// connection of its own: drop a `Tx<D>` or `Read<D>` that you hold before you load.
///
/// # Drop
///
/// An aggregate that is dropped uncommitted gives its lease back, at once if the request has no
/// connection, else when it is settled.
pub type Aggregates<D, A> = AsyncAggregateRepository<RequestRepository<D>, A>;

/// Streams of the database `D`, for one request. Meant to be used through [`Aggregates`].
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
        "the database `{database}` keeps no aggregates; add \
         `.attach(rocket_tx_aggregates::aggregate::init::<{database}>())` to the launch code"
    );
    rocket_tx::Error::NotSetUp(reason.into())
}

/// Dooms the request when it is dropped: a part of the staged events may have been written, and the
/// rest must not be forgotten.
struct FlushGuard<'a>(Option<&'a Outstanding>);

impl FlushGuard<'_> {
    fn doom_by(&self, error: &Error) {
        // The first doom counts.
        if let (Error::Conflict(_), Some(outstanding)) = (error, self.0) {
            // After the verdict nothing is left to be doomed.
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

/// Reads through the request's open transaction, if it has one, else through a connection that only
/// reads and is given back at once.
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
                let mut read = Read::<D>::in_request(outstanding, $leases.pool()).await?;
                let $db = &mut *read;
                $work
            }
        }
    }};
}

impl<D: AggregateDatabase> AsyncRepository for RequestRepository<D> {
    async fn lease(&self, streams: &[&str]) -> Result<Vec<Option<HeldLease>>, Error> {
        let outstanding = &self.leases.outstanding;
        outstanding.mark_used();
        let sorted = in_order(streams);
        let deadline = self.leases.shared.locks.deadline();
        let first = sorted.first().copied().unwrap_or_default();
        let _turn = deadline
            .timeout(first, outstanding.acquire_in_turn())
            .await?;
        let mut leases = BTreeMap::new();
        for stream in sorted {
            let lease = self.leases.lease(stream, deadline).await?;
            // Before the next wait, so that this one is released when the request is settled even
            // if the next one fails.
            RequestAggregates::join(&self.leases)?;
            leases.insert(stream, lease);
        }
        let of = |stream: &&str| leases.get(*stream).cloned();
        Ok(streams.iter().map(of).collect())
    }

    async fn load(&self, stream: &str, snapshot_version: Option<u32>) -> Result<History, Error> {
        let mut history = reading!(self.leases, |db| {
            load_from(db, stream, snapshot_version).await
        })?;
        if let Some(staged) = self.leases.staged(stream) {
            history.events.extend(staged.events);
        }
        Ok(history)
    }

    async fn loaded(&self, streams: &[&str]) {
        if let Some(observer) = &self.observer {
            for stream in streams {
                observer.loaded(stream).await;
            }
        }
    }

    async fn append(&self, mut batch: Vec<Append>) -> Result<(), Error> {
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

    async fn flush(&self) -> Result<(), Error> {
        let begin = Begin::<D>::in_request(&self.leases.outstanding, self.leases.pool());
        let mut tx = begin.begin().await?;
        let staged = self.leases.flush();
        let mut guard = FlushGuard(Some(&self.leases.outstanding));
        let written = self.leases.shared.store.write(&mut tx, &staged).await;
        match &written {
            Ok(()) => guard.0 = None,
            Err(error) => guard.doom_by(error),
        }
        written
    }

    async fn page(&self, stream: &str, after: u64, limit: u32) -> Result<Vec<EventRecord>, Error> {
        reading!(self.leases, |db| page_from(db, stream, after, limit).await)
    }

    fn snapshot_every(&self) -> u64 {
        self.leases.shared.store.snapshot_every()
    }
}

impl<D: AggregateDatabase> AsyncUnlockableRepository for RequestRepository<D> {
    /// Staged events keep their lease until the request is settled; so does every lease of a
    /// request that has a connection.
    async fn unlock(&self, stream: &str) -> Result<(), Error> {
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
