//! The registry: everything that one request has begun and not yet settled.

use std::any::TypeId;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rocket::futures::future::BoxFuture;
use rocket::http::Status;
use rocket_db_pools::Database;

use super::attempting::Attempting;
use super::begin_step::BeginSteps;
use super::hooks::Hooks;
use super::open_transaction::AnySlot;
use super::resource::Resource;
use super::response_plan::ResponsePlan;
use crate::db::{Access, Ending, Isolation, WaitPolicy};
use crate::tx::failure::{Error, Problem};
use crate::tx::monitor::{Live, LiveEntry, LiveFlags, Observers};
use crate::tx::panics::PanicWatch;
use crate::tx::request_id::RequestId;
use crate::tx::verdict::Choice;

/// The registry of a request: everything that the request has begun and not yet committed or rolled
/// back.
///
/// With the request guard `&Outstanding`, a handler can join a [`Resource`], doom the request, or
/// add hooks that run after the commit or the rollback. The registry is created on first use. It
/// lives as long as the request, and survives a forwarding route and a catcher.
///
/// When the response is ready, the registry is closed and the verdict is decided. A task or a body
/// that tries to begin or join something after that receives [`Error::Settled`].
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::{Error, Outstanding};
///
/// #[rocket::post("/orders")]
/// fn order(outstanding: &Outstanding) -> Result<Status, Error> {
///     outstanding.after_commit(async { println!("tell the warehouse") })?;
///     Ok(Status::Created)
/// }
/// ```
pub struct Outstanding {
    pub(in crate::tx) request: RequestId,
    pub(in crate::tx) live: Live,
    pub(in crate::tx) observers: Observers,
    panics: PanicWatch,
    /// Lets one task of the request at a time wait for a connection or a lease. It is held across
    /// that wait on purpose: whether a task may wait depends on what the request holds, and the
    /// request must not get more during the wait.
    turn: tokio::sync::Mutex<()>,
    pub(super) state: Mutex<State>,
    pub(super) response_plan: Mutex<ResponsePlan>,
}

#[derive(Default)]
pub(super) struct State {
    /// In joining order.
    pub(super) entries: Vec<Entry>,
    /// Transactions that resources need when they are settled.
    pub(super) required: Vec<RequiredTransaction>,
    /// Databases whose transactions must not be stricter than READ COMMITTED, with the reason.
    pub(super) capped: Vec<(TypeId, &'static str)>,
    /// The databases that the request's `Read`s hold connections of.
    pub(super) reading: Vec<RegisteredRead>,
    /// Steps that run when transactions that write begin.
    pub(super) steps: BeginSteps,
    pub(super) doom: Option<(Status, Cow<'static, str>)>,
    /// The attempts of `retrying` that are running.
    pub(super) attempting: Option<Attempting>,
    pub(super) choice: Option<Choice>,
    /// The problem of the first guard of this library that failed.
    pub(super) failure: Option<Problem>,
    pub(super) hooks: Hooks,
    /// The current route, for the live list.
    pub(super) route: Option<Cow<'static, str>>,
    /// The request had something outstanding, or tried to, or was doomed.
    pub(super) used: bool,
    /// The request has used a guard by which something can become outstanding.
    pub(super) wanted: bool,
    /// The response is ready, and nothing can join any more.
    pub(super) closed: bool,
}

/// The right of one task of a request to wait for a connection or a lease. The other tasks of the
/// request wait until it is dropped.
#[must_use = "the turn ends when it is dropped"]
pub struct Turn<'a>(#[expect(dead_code)] tokio::sync::MutexGuard<'a, ()>);

/// A database whose transaction a resource needs when the request is settled.
#[derive(Clone)]
pub(super) struct RequiredTransaction {
    pub(super) database: TypeId,
    /// The place of the database in the order of attachment.
    pub(super) rank: usize,
    pub(super) how: Arc<dyn DeferredBegin>,
}

/// How a required transaction is begun.
pub(super) trait DeferredBegin: Send + Sync {
    /// Begins the transaction in the registry, as a guard does.
    fn begin<'a>(&'a self, outstanding: &'a Arc<Outstanding>) -> BoxFuture<'a, Result<(), Error>>;

    /// Begins the transaction during the settlement, when the registry is closed.
    fn open<'a>(
        &'a self,
        outstanding: &'a Outstanding,
        wait: WaitPolicy,
    ) -> BoxFuture<'a, Result<Box<dyn Resource>, Error>>;
}

/// A database of which a `Read` holds a connection.
#[derive(Clone)]
pub(super) struct RegisteredRead {
    pub(super) database: TypeId,
    pub(super) name: &'static str,
    pub(super) rank: usize,
    /// The last use of the `Read` was by the body of the response.
    pub(super) by_body: Arc<AtomicBool>,
}

/// One entry of the registry.
pub(super) enum Entry {
    Database(DatabaseEntry),
    Resource(Box<dyn Resource>, LiveEntry),
}

/// A database whose transaction the request has, or is beginning.
pub(super) struct DatabaseEntry {
    pub(super) database: TypeId,
    pub(super) name: &'static str,
    /// The type of the guard that began the transaction.
    pub(super) guard: &'static str,
    pub(super) rank: usize,
    pub(super) isolation: Isolation,
    pub(super) access: Access,
    pub(super) since: Instant,
    pub(super) slot: Arc<dyn AnySlot>,
    /// The same slot, with the type that guards lock.
    pub(super) typed_slot: Box<dyn std::any::Any + Send + Sync>,
    /// `None` while the transaction is being begun.
    pub(super) flags: Option<LiveFlags>,
    /// Ends the transaction if a guard outlives its request. `None` while it is being begun.
    pub(super) ending: Option<Ending>,
}

impl Outstanding {
    /// Creates an empty registry. From now on, panics in the current task are recorded.
    pub(in crate::tx) fn new(request: RequestId, live: Live, observers: Observers) -> Self {
        Self {
            request,
            live,
            observers,
            panics: PanicWatch::here(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            response_plan: Mutex::default(),
        }
    }

    /// Records the current route.
    pub(super) fn set_route(&self, route: Option<Cow<'static, str>>) {
        self.state.lock().route = route;
    }

    /// Returns the state, or [`Error::Settled`] after the verdict.
    pub(super) fn open_state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock();
        if state.closed {
            return Err(Error::Settled);
        }
        Ok(state)
    }

    /// Returns the state, to add something that a failed attempt undoes.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict. [`Error::Retrying`] beside attempts.
    pub(super) fn state_of_attempt(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.open_state()?;
        state.check_attempt()?;
        Ok(state)
    }

    /// The id of the request.
    pub fn request_id(&self) -> RequestId {
        self.request
    }

    /// Whether the request holds or is acquiring a connection, for a transaction or for a `Read`.
    ///
    /// While it does, it must not wait for anything that another request may hold: the other
    /// request may be waiting for a connection.
    pub fn holds_a_connection(&self) -> bool {
        let state = self.state.lock();
        state.databases().next().is_some() || !state.reading.is_empty()
    }

    /// Records that the request uses a guard by which something can become outstanding. For guards
    /// of other libraries.
    ///
    /// After a panic, no catcher can turn such a request into a success, even if nothing was begun.
    pub fn mark_wanted(&self) {
        self.state.lock().wanted = true;
    }

    /// Marks the request transactional, so that its response carries `Transaction-Outcome`.
    pub fn mark_used(&self) {
        self.state.lock().used = true;
    }

    /// Waits until no other task of this request is waiting for a connection or a lease. Other
    /// tasks then wait until the [`Turn`] is dropped.
    ///
    /// Call it before a wait whose limit depends on what the request
    /// [holds](Self::holds_a_connection).
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, its place in the queue of tasks is lost.
    pub async fn acquire_in_turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().await)
    }

    /// Limits the isolation of transactions of `D` to READ COMMITTED from now on. A guard that
    /// requires more fails with [`Error::Isolation`], which contains `reason`.
    pub fn cap_isolation<D: Database>(&self, reason: &'static str) {
        let database = TypeId::of::<D>();
        let mut state = self.state.lock();
        if state.cap(database).is_none() {
            state.capped.push((database, reason));
        }
    }

    /// Returns the isolation and access of the open transaction of `D`, if the request has one.
    pub fn open_mode<D: Database>(&self) -> Option<(Isolation, Access)> {
        let state = self.state.lock();
        let mut databases = state.databases();
        let entry = databases.find(|entry| entry.database == TypeId::of::<D>())?;
        Some((entry.isolation, entry.access))
    }

    /// Whether the registry is closed: the response is ready, and nothing can join any more.
    pub fn is_settled(&self) -> bool {
        self.state.lock().closed
    }

    /// Registers a `Read` of `D` until [`reading_ends`](Self::reading_ends). Returns whether the
    /// `Read` may wait for a connection. The `Read` sets `by_body` at each use: `true` if the body
    /// of the response uses it.
    ///
    /// # Errors
    ///
    /// [`Error::SecondConnection`] if the request already has a transaction or a `Read` of `D`.
    pub(in crate::tx) fn reading_begins<D: Database>(
        &self,
        rank: usize,
        by_body: Arc<AtomicBool>,
    ) -> Result<WaitPolicy, Error> {
        let mut state = self.state.lock();
        let database = TypeId::of::<D>();
        let open = state.databases().any(|entry| entry.database == database);
        if open || state.is_reading::<D>() {
            return Err(Error::SecondConnection(D::NAME));
        }
        let wait = state.wait_policy(rank);
        state.reading.push(RegisteredRead {
            database,
            name: D::NAME,
            rank,
            by_body,
        });
        Ok(wait)
    }

    /// Returns the database that the request holds although it is attached after `D`, if the
    /// request does not have a transaction of `D` yet.
    pub(in crate::tx) fn held_before_its_turn<D: Database>(
        &self,
        rank: usize,
    ) -> Option<&'static str> {
        let state = self.state.lock();
        let database = TypeId::of::<D>();
        if state.databases().any(|entry| entry.database == database) {
            return None;
        }
        let open = state.databases().map(|entry| (entry.rank, entry.name));
        let reading = state.reading.iter().map(|read| (read.rank, read.name));
        let mut held = open.chain(reading);
        held.find_map(|(held, name)| (held > rank).then_some(name))
    }

    /// The name of the current route.
    pub(in crate::tx) fn route(&self) -> Option<Cow<'static, str>> {
        self.state.lock().route.clone()
    }

    /// Whether the request has a registered `Read`.
    pub(in crate::tx) fn is_read_from(&self) -> bool {
        !self.state.lock().reading.is_empty()
    }

    /// Returns the databases of the `Read`s that the body of the response holds.
    pub(in crate::tx) fn read_from_by_body(&self) -> Vec<&'static str> {
        let state = self.state.lock();
        let by_body = |reading: &&RegisteredRead| reading.by_body.load(Ordering::Relaxed);
        let reading = state.reading.iter().filter(by_body);
        reading.map(|reading| reading.name).collect()
    }

    /// Removes the `Read` of `D`.
    pub(in crate::tx) fn reading_ends<D: Database>(&self) {
        self.state
            .lock()
            .reading
            .retain(|reading| reading.database != TypeId::of::<D>());
    }

    /// Records that a guard failed. The first problem is kept.
    pub(in crate::tx) fn fail(&self, problem: Problem) {
        self.state.lock().failure.get_or_insert(problem);
    }

    pub(in crate::tx) fn failure(&self) -> Option<Problem> {
        self.state.lock().failure.clone()
    }

    /// Abandons all transactions that are checked in, because the handler was dropped in the middle
    /// of its work. Their connections are not used again, not even to roll back.
    pub(in crate::tx) fn abandon(&self) {
        for entry in self.state.lock().databases() {
            entry.slot.abandon();
        }
    }

    pub(in crate::tx) fn choose(&self, choice: Choice) {
        self.state.lock().choice = Some(choice);
    }

    /// Records that a guard was dropped by a panic.
    pub(in crate::tx) fn panicked(&self) {
        self.panics.mark();
    }

    pub(in crate::tx) fn has_panicked(&self) -> bool {
        self.panics.has_panicked()
    }
}

impl State {
    /// # Errors
    ///
    /// [`Error::Retrying`] if attempts are running, and the current code does not belong to them.
    pub(super) fn check_attempt(&self) -> Result<(), Error> {
        match &self.attempting {
            Some(attempting) => attempting.check_here(),
            None => Ok(()),
        }
    }

    /// Returns the reason if transactions of `database` must not be stricter than READ COMMITTED.
    pub(super) fn cap(&self, database: TypeId) -> Option<&'static str> {
        let mut capped = self.capped.iter();
        capped.find_map(|(known, reason)| (*known == database).then_some(*reason))
    }

    pub(super) fn is_reading<D: Database>(&self) -> bool {
        let database = TypeId::of::<D>();
        self.reading
            .iter()
            .any(|reading| reading.database == database)
    }

    /// Returns whether the request may wait for a connection of the database with this `rank`.
    ///
    /// A request that holds connections waits only for databases that are attached after all held
    /// ones. All waits go in the same direction, so they cannot form a cycle (a deadlock).
    pub(super) fn wait_policy(&self, rank: usize) -> WaitPolicy {
        let mut held = self
            .databases()
            .map(|entry| entry.rank)
            .chain(self.reading.iter().map(|reading| reading.rank));
        match held.any(|held| held > rank) {
            true => WaitPolicy::FAIL_FAST,
            false => WaitPolicy::QUEUE,
        }
    }

    pub(super) fn databases(&self) -> impl Iterator<Item = &DatabaseEntry> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Database(entry) => Some(entry),
            Entry::Resource(..) => None,
        })
    }
}
