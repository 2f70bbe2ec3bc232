//! The registry: everything begun in one request and not yet settled.

use std::any::TypeId;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rocket::futures::future::BoxFuture;
use rocket::http::Status;
use rocket_db_pools::Database;

use super::hooks::Hooks;
use super::open_transaction::AnySlot;
use super::resource::Resource;
use crate::db::{Access, Ending, Isolation, WaitPolicy};
use crate::tx::failure::{Error, Problem};
use crate::tx::monitor::{Live, LiveEntry, LiveFlags, Observers};
use crate::tx::panics::PanicWatch;
use crate::tx::request_id::RequestId;
use crate::tx::verdict::Choice;

/// Everything that a request has begun and not yet committed or rolled back.
///
/// As a request guard, `&Outstanding`, it lets a handler join a [`Resource`], doom the request, or
/// leave work for after the commit. It is made on first use, lives as long as the request, and
/// survives a forwarding route and a catcher.
///
/// When the response is ready the verdict falls. What a task or a body asks of the registry after
/// that is refused with [`Error::Settled`].
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
    /// Held across a wait on purpose: what two tasks of one request ask for, they get in turn. What
    /// one of them may wait for depends on what the request holds; it must not get more meanwhile.
    turn: tokio::sync::Mutex<()>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// In joining order.
    pub(super) entries: Vec<Entry>,
    /// What resources will need when they are settled.
    pub(super) required: Vec<RequiredTransaction>,
    /// Databases whose transactions must be READ COMMITTED, and why.
    pub(super) capped: Vec<(TypeId, &'static str)>,
    /// What the request's `Read`s hold.
    pub(super) reading: Vec<RegisteredRead>,
    pub(super) doom: Option<(Status, Cow<'static, str>)>,
    pub(super) choice: Option<Choice>,
    /// What the first guard of this library that failed had to say.
    pub(super) failure: Option<Problem>,
    pub(super) hooks: Hooks,
    /// The route that is running, for the list of what is live.
    pub(super) route: Option<Cow<'static, str>>,
    /// Something was outstanding, or tried to be.
    pub(super) used: bool,
    /// A guard by which something can become outstanding was taken.
    pub(super) wanted: bool,
    /// The verdict has fallen; nothing joins any more.
    pub(super) closed: bool,
}

/// The turn of one task among those of its request. The others get theirs when it is dropped.
#[must_use = "the turn ends when it is dropped"]
pub struct Turn<'a>(#[expect(dead_code)] tokio::sync::MutexGuard<'a, ()>);

/// A database whose transaction is needed when the request is settled.
pub(super) struct RequiredTransaction {
    pub(super) database: TypeId,
    pub(super) rank: usize,
    pub(super) how: Arc<dyn DeferredBegin>,
}

/// How a required transaction is begun.
pub(super) trait DeferredBegin: Send + Sync {
    /// Into the registry, as a guard would.
    fn begin<'a>(&'a self, outstanding: &'a Arc<Outstanding>) -> BoxFuture<'a, Result<(), Error>>;

    /// For a settlement, whose registry is closed.
    fn open<'a>(
        &'a self,
        outstanding: &'a Outstanding,
        wait: WaitPolicy,
    ) -> BoxFuture<'a, Result<Box<dyn Resource>, Error>>;
}

/// A database that a `Read` holds a connection of.
#[derive(Clone)]
pub(super) struct RegisteredRead {
    pub(super) database: TypeId,
    pub(super) name: &'static str,
    pub(super) rank: usize,
    /// What used it last is the body of the response.
    pub(super) by_body: Arc<AtomicBool>,
}

/// One line of the registry.
pub(super) enum Entry {
    Database(DatabaseEntry),
    Resource(Box<dyn Resource>, LiveEntry),
}

/// A database whose transaction the request has, or is beginning.
pub(super) struct DatabaseEntry {
    pub(super) database: TypeId,
    pub(super) name: &'static str,
    pub(super) guard: &'static str,
    pub(super) rank: usize,
    pub(super) isolation: Isolation,
    pub(super) access: Access,
    pub(super) since: Instant,
    pub(super) slot: Arc<dyn AnySlot>,
    /// The same slot, with the type that guards lock.
    pub(super) typed_slot: Box<dyn std::any::Any + Send + Sync>,
    /// Present once it is begun, as is what follows.
    pub(super) flags: Option<LiveFlags>,
    /// For when a guard outlives its request.
    pub(super) ending: Option<Ending>,
}

impl Outstanding {
    /// Nothing is begun yet. It notices panics of the request's task from now on.
    pub(in crate::tx) fn new(request: RequestId, live: Live, observers: Observers) -> Self {
        Self {
            request,
            live,
            observers,
            panics: PanicWatch::here(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// The route that is running now.
    pub(super) fn set_route(&self, route: Option<Cow<'static, str>>) {
        self.state.lock().route = route;
    }

    /// The state, as long as the verdict has not fallen.
    pub(super) fn open_state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock();
        if state.closed {
            return Err(Error::Settled);
        }
        Ok(state)
    }

    /// The request that it is the registry of.
    pub fn request_id(&self) -> RequestId {
        self.request
    }

    /// Whether the request has a connection now, in a transaction or for a `Read`. Who has one must
    /// not wait for anything that another request may have, which may be waiting for a connection.
    pub fn holds_a_connection(&self) -> bool {
        let state = self.state.lock();
        state.databases().next().is_some() || !state.reading.is_empty()
    }

    /// Marks that a guard was taken by which something can become outstanding: after a panic no
    /// catcher makes a success of the request, although nothing was begun yet. For guards of other
    /// libraries.
    pub fn mark_wanted(&self) {
        self.state.lock().wanted = true;
    }

    /// Marks the request transactional, so that its response carries `Transaction-Outcome`.
    pub fn mark_used(&self) {
        self.state.lock().used = true;
    }

    /// Waits until no other task of this request is waiting for a connection or a lease, and keeps
    /// others waiting until the [`Turn`] is dropped. Before a wait whose bound depends on what the
    /// request [holds](Self::holds_a_connection).
    ///
    /// # Cancellation
    ///
    /// Dropping the future gives up the place in the queue.
    pub async fn acquire_in_turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().await)
    }

    /// From now on no transaction of `D` begins above READ COMMITTED: a guard that asks for more
    /// fails with [`Error::Isolation`], which tells the `reason`.
    pub fn cap_isolation<D: Database>(&self, reason: &'static str) {
        let database = TypeId::of::<D>();
        let mut state = self.state.lock();
        if state.cap(database).is_none() {
            state.capped.push((database, reason));
        }
    }

    /// How strict the open transaction of `D` is, if the request has one.
    pub fn open_mode<D: Database>(&self) -> Option<(Isolation, Access)> {
        let state = self.state.lock();
        let mut databases = state.databases();
        let entry = databases.find(|entry| entry.database == TypeId::of::<D>())?;
        Some((entry.isolation, entry.access))
    }

    /// Whether the verdict has fallen: nothing joins any more.
    pub fn is_settled(&self) -> bool {
        self.state.lock().closed
    }

    /// A `Read` of `D` begins. Ends with [`reading_ends`](Self::reading_ends). Says how long it
    /// may wait for a connection. What uses the `Read` says in `by_body` whether it is the body.
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

    /// Whether a `Read` of the request holds a connection.
    pub(in crate::tx) fn is_read_from(&self) -> bool {
        !self.state.lock().reading.is_empty()
    }

    /// The databases that the body of the response holds a connection of, by a `Read`.
    pub(in crate::tx) fn read_from_by_body(&self) -> Vec<&'static str> {
        let state = self.state.lock();
        let by_body = |reading: &&RegisteredRead| reading.by_body.load(Ordering::Relaxed);
        let reading = state.reading.iter().filter(by_body);
        reading.map(|reading| reading.name).collect()
    }

    pub(in crate::tx) fn reading_ends<D: Database>(&self) {
        self.state
            .lock()
            .reading
            .retain(|reading| reading.database != TypeId::of::<D>());
    }

    /// A guard failed before its handler ran.
    pub(in crate::tx) fn fail(&self, problem: Problem) {
        self.state.lock().failure.get_or_insert(problem);
    }

    pub(in crate::tx) fn failure(&self) -> Option<Problem> {
        self.state.lock().failure.clone()
    }

    /// Its handler was dropped in the middle of whatever it did: what it has checked in is not to be
    /// used again, not even to roll back.
    pub(in crate::tx) fn abandon(&self) {
        for entry in self.state.lock().databases() {
            entry.slot.abandon();
        }
    }

    pub(in crate::tx) fn choose(&self, choice: Choice) {
        self.state.lock().choice = Some(choice);
    }

    pub(in crate::tx) fn panicked(&self) {
        self.panics.mark();
    }

    pub(in crate::tx) fn has_panicked(&self) -> bool {
        self.panics.has_panicked()
    }
}

impl State {
    /// Why transactions of a database must be READ COMMITTED, if they must.
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

    /// Who holds a connection waits only for databases that are attached behind it: waits that all
    /// go one way never meet in a circle.
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
