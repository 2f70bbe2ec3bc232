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

use super::error::Error;
use super::hooks::{HookOutput, Hooks};
use super::lent::Loan;
use super::live::{Live, LiveEntry, LiveFlags};
use super::observe::Observers;
use super::panics::PanicWatch;
use super::problem::Problem;
use super::request_id::RequestId;
use super::resource::Resource;
use super::verdict::Choice;
use crate::db::{Access, Ending, Isolation, Patience};

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
    pub(super) request: RequestId,
    pub(super) live: Live,
    pub(super) observers: Observers,
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
    pub(super) required: Vec<Required>,
    /// Databases of which it holds leases whose fence works at READ COMMITTED alone.
    pub(super) leased: Vec<TypeId>,
    /// What the request's `Read`s hold.
    reading: Vec<Reading>,
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

/// A database whose transaction is needed when the request is settled.
pub(super) struct Required {
    pub(super) database: TypeId,
    pub(super) rank: usize,
    pub(super) how: Arc<dyn How>,
}

/// How it is begun.
pub(super) trait How: Send + Sync {
    /// Into the registry, as a guard would.
    fn begin<'a>(&'a self, outstanding: &'a Arc<Outstanding>) -> BoxFuture<'a, Result<(), Error>>;

    /// For a settlement, whose registry is closed.
    fn open<'a>(
        &'a self,
        outstanding: &'a Outstanding,
        patience: Patience,
    ) -> BoxFuture<'a, Result<Box<dyn Resource>, Error>>;
}

/// A database that a `Read` holds a connection of.
#[derive(Clone)]
struct Reading {
    database: TypeId,
    name: &'static str,
    rank: usize,
    /// What used it last is the body of the response.
    by_body: Arc<AtomicBool>,
}

/// One line of the registry.
pub(super) enum Entry {
    Database(Lending),
    Resource(Box<dyn Resource>, LiveEntry),
}

/// A database whose transaction the request has, or is beginning.
pub(super) struct Lending {
    pub(super) database: TypeId,
    pub(super) name: &'static str,
    pub(super) guard: &'static str,
    pub(super) rank: usize,
    pub(super) isolation: Isolation,
    pub(super) access: Access,
    pub(super) since: Instant,
    pub(super) loan: Arc<dyn Loan>,
    /// The same as `loan`, as the typed cell that guards lock.
    pub(super) cell: Box<dyn std::any::Any + Send + Sync>,
    /// Present once it is begun, as is what follows.
    pub(super) flags: Option<LiveFlags>,
    /// For when a guard outlives its request.
    pub(super) ending: Option<Ending>,
}

impl Outstanding {
    /// Nothing is begun yet. It notices panics of the thread from now on.
    pub(super) fn new(request: RequestId, live: Live, observers: Observers) -> Self {
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

    /// Joins a resource: it is settled with everything else.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the resource is dropped.
    pub fn join<R: Resource>(&self, resource: R) -> Result<(), Error> {
        let mut state = self.open_state()?;
        let name = resource.name().into_owned().into();
        let live = self.live.enter(
            self.request,
            state.route.clone(),
            name,
            std::any::type_name::<R>(),
        );
        state.used = true;
        state
            .entries
            .push(Entry::Resource(Box::new(resource), live));
        Ok(())
    }

    /// Decides that everything will be rolled back, whatever the handler answers. An answer that
    /// says failure stays; any other becomes `status`, with `reason` in its body. The first doom
    /// counts.
    ///
    /// `status` is a failure, from 400 to 599. Any other becomes a 500, and is logged: a rollback is
    /// never told as a success.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen: it is too late to change it.
    pub fn doom(&self, status: Status, reason: impl Into<Cow<'static, str>>) -> Result<(), Error> {
        let mut state = self.open_state()?;
        state.used = true;
        state.doom.get_or_insert((status, reason.into()));
        Ok(())
    }

    /// Runs `hook` once everything has been committed, outside the request's time, after the hooks
    /// that were left before it. It runs never if anything is rolled back or in doubt. Shutdown
    /// waits for it, bounded; a process that is killed forgets it.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the hook is dropped, and never runs.
    pub fn after_commit<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.open_state()?.hooks.after_commit(hook);
        Ok(())
    }

    /// The twin of [`after_commit`](Self::after_commit) for when everything was rolled back.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the hook is dropped, and never runs.
    pub fn after_rollback<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.open_state()?.hooks.after_rollback(hook);
        Ok(())
    }

    /// The state, as long as the verdict has not fallen.
    fn open_state(&self) -> Result<MutexGuard<'_, State>, Error> {
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

    /// A guard is taken by which something can become outstanding: a panic after it is told as a
    /// failure, although nothing was begun yet.
    pub(crate) fn wants(&self) {
        self.state.lock().wanted = true;
    }

    /// Something is tried that would be outstanding: the answer tells the outcome.
    pub(crate) fn tries(&self) {
        self.state.lock().used = true;
    }

    /// Waits until no other task of this request is waiting for anything.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// From now on no transaction of `D` begins above READ COMMITTED.
    pub(crate) fn stay_at_read_committed<D: Database>(&self) {
        let database = TypeId::of::<D>();
        let mut state = self.state.lock();
        if !state.leased.contains(&database) {
            state.leased.push(database);
        }
    }

    /// How strict the open transaction of `D` is, if the request has one.
    pub(crate) fn strength_of<D: Database>(&self) -> Option<(Isolation, Access)> {
        let state = self.state.lock();
        let mut databases = state.databases();
        let lending = databases.find(|lending| lending.database == TypeId::of::<D>())?;
        Some((lending.isolation, lending.access))
    }

    /// Whether the verdict has fallen: nothing joins any more.
    pub fn is_settled(&self) -> bool {
        self.state.lock().closed
    }

    /// A `Read` of `D` begins. Ends with [`reading_ends`](Self::reading_ends). Says how long it
    /// may wait for a connection. What uses the `Read` says in `by_body` whether it is the body.
    pub(super) fn reading_begins<D: Database>(
        &self,
        rank: usize,
        by_body: Arc<AtomicBool>,
    ) -> Result<Patience, Error> {
        let mut state = self.state.lock();
        let database = TypeId::of::<D>();
        let open = state
            .databases()
            .any(|lending| lending.database == database);
        if open || state.is_reading::<D>() {
            return Err(Error::SecondConnection(D::NAME));
        }
        let patience = state.patience(rank);
        state.reading.push(Reading {
            database,
            name: D::NAME,
            rank,
            by_body,
        });
        Ok(patience)
    }

    /// Whether a `Read` of the request holds a connection.
    pub(super) fn is_read_from(&self) -> bool {
        !self.state.lock().reading.is_empty()
    }

    /// The databases that the body of the response holds a connection of, by a `Read`.
    pub(super) fn read_from_by_body(&self) -> Vec<&'static str> {
        let state = self.state.lock();
        let by_body = |reading: &&Reading| reading.by_body.load(Ordering::Relaxed);
        let reading = state.reading.iter().filter(by_body);
        reading.map(|reading| reading.name).collect()
    }

    pub(super) fn reading_ends<D: Database>(&self) {
        self.state
            .lock()
            .reading
            .retain(|reading| reading.database != TypeId::of::<D>());
    }

    /// A guard failed before its handler ran.
    pub(super) fn fail(&self, problem: Problem) {
        self.state.lock().failure.get_or_insert(problem);
    }

    pub(super) fn failure(&self) -> Option<Problem> {
        self.state.lock().failure.clone()
    }

    /// Its handler was dropped in the middle of whatever it did: what it has checked in is not to be
    /// used again, not even to roll back.
    pub(super) fn abandon(&self) {
        for lending in self.state.lock().databases() {
            lending.loan.abandon();
        }
    }

    pub(super) fn choose(&self, choice: Choice) {
        self.state.lock().choice = Some(choice);
    }

    pub(super) fn panicked(&self) {
        self.panics.mark();
    }

    pub(super) fn has_panicked(&self) -> bool {
        self.panics.has_panicked()
    }

    /// Lets nothing join any more, and hands everything over. A `Read` stays with the request: the
    /// body of the response may go on with it.
    pub(super) fn close(&self) -> State {
        let mut state = self.state.lock();
        let reading = state.reading.clone();
        std::mem::replace(
            &mut *state,
            State {
                reading,
                closed: true,
                ..State::default()
            },
        )
    }
}

impl State {
    pub(super) fn is_reading<D: Database>(&self) -> bool {
        let database = TypeId::of::<D>();
        self.reading
            .iter()
            .any(|reading| reading.database == database)
    }

    /// Who holds a connection waits only for databases that are attached behind it: waits that all
    /// go one way never meet in a circle.
    pub(super) fn patience(&self, rank: usize) -> Patience {
        let mut held = self
            .databases()
            .map(|lending| lending.rank)
            .chain(self.reading.iter().map(|reading| reading.rank));
        match held.any(|held| held > rank) {
            true => Patience::Never,
            false => Patience::Wait,
        }
    }

    pub(super) fn databases(&self) -> impl Iterator<Item = &Lending> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Database(lending) => Some(lending),
            Entry::Resource(..) => None,
        })
    }
}
