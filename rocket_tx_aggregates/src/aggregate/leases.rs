//! The leases and the staged events of a request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rocket_db_pools::Database;
use rocket_tx::Tx;
use rocket_tx::db::{Access, Isolation};
use rocket_tx::tx::{Outstanding, ReadOnly};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;
use tracing::field::Empty;

use super::error::AggregateError;
use super::initializer::Shared;
use super::order::Order;
use super::rows::AggregateDatabase;
use super::stream::{Append, HeldLease};
use crate::lock::{Deadline, Exclusion, Lease, LeasePool, LeaseStore, LockError, Token};

pub(super) type LeaseOf<D> = Lease<<<D as Database>::Pool as LeasePool>::Leases>;

/// Why a request with a lease cannot have a transaction above READ COMMITTED. Shown to the client.
const CAP: &str = "the request holds the lease of an aggregate, and that lease can be checked only at READ COMMITTED; \
    use the default isolation, or load with `peek`, which takes no lease";

/// The leases and the staged events of a request, in the database `D`.
pub(super) struct RequestLeases<D: AggregateDatabase> {
    pub(super) outstanding: Arc<Outstanding>,
    pub(super) shared: Arc<Shared<D>>,
    rank: usize,
    pub(super) order: Arc<Order>,
    state: Mutex<State<D>>,
}

struct State<D: AggregateDatabase> {
    entries: BTreeMap<String, LeaseEntry<D>>,
    staged: BTreeMap<String, Append>,
    /// The events that were staged before the attempts of `Begin::retrying`.
    staged_before_attempts: BTreeMap<String, Append>,
    /// Streams of which a leased aggregate was dropped with new events that were not committed, with
    /// the number of these events.
    discarded: BTreeMap<String, usize>,
    /// Streams whose events were written to the open transaction by a flush.
    flushed: BTreeSet<String>,
    /// Leases that are being released before settlement.
    pending: BTreeMap<String, PendingRelease>,
    /// Whether these leases and events have joined the request's registry as a resource.
    joined: bool,
    /// Whether settlement has begun: no lease or event can be added any more.
    closed: bool,
}

struct LeaseEntry<D: AggregateDatabase> {
    /// `None` if the open transaction already keeps other writers from the stream.
    lease: Option<LeaseOf<D>>,
    handle: Weak<LeaseHandle<D>>,
}

/// A lease that is being released before settlement.
#[derive(Clone)]
struct PendingRelease {
    token: Token,
    /// Cancelled once the lease is released.
    done: CancellationToken,
}

/// The handle of a loaded aggregate on its lease. Dropping it releases the lease, unless the
/// request still needs the lease.
pub(super) struct LeaseHandle<D: AggregateDatabase> {
    stream: String,
    leases: Arc<RequestLeases<D>>,
}

impl<D: AggregateDatabase> Drop for LeaseHandle<D> {
    fn drop(&mut self) {
        self.leases.handle_dropped(&self.stream);
    }
}

fn held<D: AggregateDatabase>(handle: Arc<LeaseHandle<D>>) -> HeldLease {
    let (leases, stream) = (Arc::downgrade(&handle.leases), handle.stream.clone());
    HeldLease::new(handle).on_discard(move |events| {
        if let Some(leases) = leases.upgrade() {
            let mut state = leases.state.lock();
            *state.discarded.entry(stream.clone()).or_default() += events;
        }
    })
}

/// The leases and events that are handed over to settlement.
pub(super) struct Contents<D: AggregateDatabase> {
    /// In key order.
    pub(super) leases: Vec<LeaseOf<D>>,
    /// In stream order.
    pub(super) staged: Vec<Append>,
}

impl<D: AggregateDatabase> RequestLeases<D> {
    pub(super) fn new(
        outstanding: &Arc<Outstanding>,
        shared: &Arc<Shared<D>>,
        rank: usize,
        order: &Arc<Order>,
    ) -> Self {
        Self {
            outstanding: Arc::clone(outstanding),
            shared: Arc::clone(shared),
            rank,
            order: Arc::clone(order),
            state: Mutex::new(State {
                entries: BTreeMap::new(),
                staged: BTreeMap::new(),
                staged_before_attempts: BTreeMap::new(),
                discarded: BTreeMap::new(),
                flushed: BTreeSet::new(),
                pending: BTreeMap::new(),
                joined: false,
                closed: false,
            }),
        }
    }

    /// Splits sorted streams in two parts: those that are free now or not at all, because the request
    /// must not wait for them, and those that the request may wait for. The caller takes the leases
    /// of the first part before those of the second.
    pub(super) fn parts<'a, 'b>(&self, streams: &'a [&'b str]) -> [&'a [&'b str]; 2] {
        let may_wait = |stream: &&str| self.may_wait_for(stream);
        // If the request may wait for a stream, it may also wait for those that sort after it.
        let first = streams.iter().position(may_wait);
        streams.split_at(first.unwrap_or(streams.len())).into()
    }

    /// Takes the leases of all `streams` except those that the request holds already, with one
    /// statement where nobody contends. The streams are one of the [`parts`](Self::parts). The caller
    /// must hold the request's [turn](Outstanding::acquire_in_turn), and join the resource after this
    /// has returned.
    ///
    /// # Cancellation
    ///
    /// Dropping the future releases the leases that it has taken.
    pub(super) async fn lease(
        self: &Arc<Self>,
        streams: &[&str],
        deadline: Deadline,
    ) -> Result<Vec<HeldLease>, AggregateError> {
        let owned: Vec<_> = streams.iter().map(|stream| self.owned(stream)).collect();
        let missing: Vec<&str> = streams
            .iter()
            .zip(&owned)
            .filter_map(|(stream, owned)| owned.is_none().then_some(*stream))
            .collect();
        let mut taken = self.take(&missing, deadline).await?.into_iter();
        let handles = owned
            .into_iter()
            .filter_map(|owned| owned.or_else(|| taken.next()));
        Ok(handles.map(held).collect())
    }

    /// Returns a handle on the lease of `stream`, if the request holds it already.
    fn owned(self: &Arc<Self>, stream: &str) -> Option<Arc<LeaseHandle<D>>> {
        let mut state = self.state.lock();
        let entry = state.entries.get_mut(stream)?;
        if let Some(handle) = entry.handle.upgrade() {
            return Some(handle);
        }
        let handle = self.handle(stream);
        entry.handle = Arc::downgrade(&handle);
        Some(handle)
    }

    fn handle(self: &Arc<Self>, stream: &str) -> Arc<LeaseHandle<D>> {
        Arc::new(LeaseHandle {
            stream: stream.to_owned(),
            leases: Arc::clone(self),
        })
    }

    async fn take(
        self: &Arc<Self>,
        streams: &[&str],
        deadline: Deadline,
    ) -> Result<Vec<Arc<LeaseHandle<D>>>, AggregateError> {
        let Some(first) = streams.first() else {
            return Ok(Vec::new());
        };
        if self.outstanding.is_settled() {
            return Err(rocket_tx::Error::Settled.into());
        }
        let may_wait = self.may_wait_for(first);
        let mut leased = Vec::with_capacity(streams.len());
        for stream in streams {
            if !self.excluded_by_transaction(stream).await? {
                leased.push(*stream);
            }
        }
        let leases = match leased.is_empty() {
            true => Vec::new(),
            false => {
                let span = tracing::debug_span!("lease", database = D::NAME, acquired = Empty);
                let leases = self.acquire(&leased, may_wait, deadline);
                let leases = leases.instrument(span.clone()).await;
                span.record("acquired", leases.is_ok());
                leases?
            }
        };
        let mut leases: BTreeMap<&str, LeaseOf<D>> = leased.into_iter().zip(leases).collect();
        let mut state = self.state.lock();
        if state.closed {
            return Err(rocket_tx::Error::Settled.into());
        }
        let mut handles = Vec::with_capacity(streams.len());
        for &stream in streams {
            let handle = self.handle(stream);
            let entry = LeaseEntry {
                lease: leases.remove(stream),
                handle: Arc::downgrade(&handle),
            };
            state.entries.insert(stream.to_owned(), entry);
            self.order.insert(self.rank, stream);
            handles.push(handle);
        }
        Ok(handles)
    }

    /// Takes the leases of `streams`, in their order.
    async fn acquire(
        &self,
        streams: &[&str],
        may_wait: bool,
        deadline: Deadline,
    ) -> Result<Vec<LeaseOf<D>>, AggregateError> {
        let locks = &self.shared.locks;
        let leases = match may_wait {
            true => locks.acquire_all_by(streams, deadline).await?,
            false => {
                // This request may be releasing some of the leases itself right now. If that takes
                // longer than one retry interval, the attempt below reports the lease as held.
                let releases = streams
                    .iter()
                    .filter_map(|stream| self.pending_release(stream));
                let released = async {
                    for PendingRelease { done, .. } in releases {
                        done.cancelled().await;
                    }
                };
                let _timed_out = timeout(locks.retry_interval(), released).await;
                locks.try_acquire_all(streams).await?
            }
        };
        if leases.iter().any(|lease| lease.needs_read_committed()) {
            self.outstanding.cap_isolation::<D>(CAP);
        }
        Ok(leases)
    }

    /// Returns the release of `stream`, if this request is releasing its lease right now.
    fn pending_release(&self, stream: &str) -> Option<PendingRelease> {
        let mut state = self.state.lock();
        state
            .pending
            .retain(|_, release| !release.done.is_cancelled());
        state.pending.get(stream).cloned()
    }

    /// Deadlock rule: wait for a lease only while holding no connection and no later key.
    fn may_wait_for(&self, stream: &str) -> bool {
        self.order.is_next(self.rank, stream) && !self.outstanding.holds_a_connection()
    }

    /// Returns whether the request has an open transaction of `D` that already keeps other writers
    /// from `stream`, so that no lease is needed.
    async fn excluded_by_transaction(&self, stream: &str) -> Result<bool, AggregateError> {
        let Some((isolation, access)) = self.outstanding.open_mode::<D>() else {
            return Ok(false);
        };
        if access == Access::ReadOnly {
            return Err(rocket_tx::Error::Weaker(D::NAME).into());
        }
        let Some(mut tx) = Tx::<D, ReadOnly>::current_in(&self.outstanding)? else {
            return Ok(false);
        };
        let ours = self.pending_release(stream).map(|pending| pending.token);
        let exclusion = <D::Pool as LeasePool>::Leases::exclusion(&mut tx, stream, ours.as_ref());
        let exclusion = exclusion.await?;
        match exclusion {
            Exclusion::Complete => Ok(true),
            Exclusion::Held => Err(LockError::Held(stream.to_owned()).into()),
            Exclusion::None if isolation > Isolation::Configured => {
                Err(rocket_tx::Error::Isolation {
                    database: D::NAME,
                    reason: CAP,
                }
                .into())
            }
            Exclusion::None => Ok(false),
        }
    }

    /// Returns `true` on the first call. The caller then joins the resource to the request.
    pub(super) fn is_first_join(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().joined, true)
    }

    /// Stages appends until the request is settled: all of them, or none if one is a conflict.
    pub(super) fn stage(&self, batch: Vec<Append>) -> Result<(), AggregateError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(rocket_tx::Error::Settled.into());
        }
        let mut last = BTreeMap::new();
        for append in &batch {
            let stream = append.stream.as_str();
            let before = last.insert(stream, append.last());
            let before = before.or_else(|| state.staged.get(stream).map(Append::last));
            if before.is_some_and(|before| before != append.after) {
                return Err(AggregateError::Conflict(append.stream.clone()));
            }
        }
        for mut append in batch {
            // The request itself holds the lease. A handle refers to this `RequestLeases`. If it
            // were stored here, the two would refer to each other and never be dropped.
            append.lease = None;
            match state.staged.get_mut(&append.stream) {
                Some(before) => before.extend(append),
                None => drop(state.staged.insert(append.stream.clone(), append)),
            }
        }
        Ok(())
    }

    /// Returns the staged events of a stream.
    pub(super) fn staged(&self, stream: &str) -> Option<Append> {
        self.state.lock().staged.get(stream).cloned()
    }

    /// Takes out the staged events. The caller writes them to the open transaction at once.
    pub(super) fn flush(&self) -> Vec<Append> {
        let mut state = self.state.lock();
        let staged = std::mem::take(&mut state.staged);
        state.flushed.extend(staged.keys().cloned());
        staged.into_values().collect()
    }

    /// Takes out the lease of `stream`, so that the caller can release it before settlement. The
    /// caller drops the returned guard once the lease is released.
    ///
    /// Returns `None` if the request has no such lease, or still needs it. The request needs it if
    /// events of the stream are staged or flushed, or if the request holds a connection.
    pub(super) fn release_early(&self, stream: &str) -> Option<(LeaseOf<D>, DropGuard)> {
        self.release_early_if(stream, |_| true)
    }

    fn release_early_if(
        &self,
        stream: &str,
        condition: impl FnOnce(&LeaseEntry<D>) -> bool,
    ) -> Option<(LeaseOf<D>, DropGuard)> {
        let mut state = self.state.lock();
        let entry = state.entries.get(stream)?;
        if !condition(entry)
            || state.staged.contains_key(stream)
            || state.flushed.contains(stream)
            // The release could wait for the very connection that this request holds.
            || self.outstanding.holds_a_connection()
        {
            return None;
        }
        let entry = state.entries.remove(stream)?;
        self.order.remove(self.rank, stream);
        let lease = entry.lease?;
        let release = PendingRelease {
            token: lease.token().clone(),
            done: CancellationToken::new(),
        };
        let done = release.done.clone().drop_guard();
        state.pending.insert(stream.to_owned(), release);
        Some((lease, done))
    }

    /// Releases the lease after its last handle was dropped, unless a new handle exists by now.
    fn handle_dropped(&self, stream: &str) {
        let is_last = |entry: &LeaseEntry<D>| entry.handle.strong_count() == 0;
        if let Some((lease, done)) = self.release_early_if(stream, is_last) {
            lease.release_then(move || drop(done));
        }
    }

    /// Remembers the staged events, before the attempts of `Begin::retrying`.
    pub(super) fn attempts_begin(&self) {
        let mut state = self.state.lock();
        state.staged_before_attempts = state.staged.clone();
    }

    /// Forgets the events that an attempt has staged. The leases stay, except those that the
    /// attempt's transaction has replaced: that transaction is over.
    pub(super) fn attempt_failed(&self) {
        let mut state = self.state.lock();
        state.staged = state.staged_before_attempts.clone();
        state.discarded.clear();
        state.flushed.clear();
        state.entries.retain(|stream, entry| {
            if entry.lease.is_none() {
                self.order.remove(self.rank, stream);
            }
            entry.lease.is_some()
        });
    }

    /// Warns about events that were recorded in leased aggregates and not committed: they are not
    /// stored. For a request that is going to commit.
    pub(super) fn warn_about_discarded_events(&self) {
        for (stream, events) in std::mem::take(&mut self.state.lock().discarded) {
            tracing::warn!(
                request = %self.outstanding.request_id(), %stream, events,
                "events were recorded in an aggregate and not committed, so they are not stored; call `commit` after `record`"
            );
        }
    }

    /// Hands over all leases and staged events. None can be added afterwards.
    pub(super) fn close(&self) -> Contents<D> {
        let mut state = self.state.lock();
        state.closed = true;
        let entries = std::mem::take(&mut state.entries);
        let staged = std::mem::take(&mut state.staged);
        Contents {
            leases: entries
                .into_values()
                .filter_map(|entry| entry.lease)
                .collect(),
            staged: staged.into_values().collect(),
        }
    }

    pub(super) fn pool(&self) -> &D::Pool {
        self.shared.store.pool()
    }
}
