//! The registry: everything begun in one request and not yet settled.

use std::any::TypeId;
use std::borrow::Cow;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome as Guard, Request};
use rocket::{Ignite, Rocket, Sentinel};
use rocket_db_pools::Database;
use tokio::sync::OwnedMutexGuard;

use super::context::{RequestContext, RequestId};
use super::error::Error;
use super::lent::{Cell, Lent, Loan, checkout};
use super::live::{Live, LiveEntry, LiveFlags};
use super::mode::Mode;
use super::panics::PanicWatch;
use super::problem::Problem;
use super::resource::Resource;
use super::settlement::Settings;
use super::verdict::Choice;
use crate::db::{Access, BeginOptions, Isolation, Patience, TransactionPool};

/// Everything that a request has begun and not yet committed or rolled back.
///
/// As a request guard, `&Outstanding`, it lets a handler join a [`Resource`], doom the request, or
/// leave work for after the commit. It is made on first use, lives as long as the request, and
/// survives a forwarding route and a catcher.
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::Outstanding;
///
/// #[rocket::post("/orders")]
/// fn order(outstanding: &Outstanding) -> Status {
///     outstanding.after_commit(async { println!("tell the warehouse") });
///     Status::Created
/// }
/// ```
pub struct Outstanding {
    pub(super) request: RequestId,
    pub(super) live: Live,
    panics: PanicWatch,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// In joining order.
    pub(super) entries: Vec<Entry>,
    /// Databases that a `Read` holds a connection of.
    reading: Vec<TypeId>,
    pub(super) doom: Option<(Status, Cow<'static, str>)>,
    pub(super) choice: Option<Choice>,
    /// What the first guard of this library that failed had to say.
    pub(super) failure: Option<Problem>,
    pub(super) hooks: Hooks,
    /// The route that is running, for the list of what is live.
    route: Option<Cow<'static, str>>,
    /// Something was outstanding, or tried to be.
    pub(super) used: bool,
    /// The verdict has fallen; nothing joins any more.
    closed: bool,
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
    rank: usize,
    isolation: Isolation,
    access: Access,
    pub(super) since: Instant,
    pub(super) loan: Arc<dyn Loan>,
    /// The same as `loan`, as the typed cell that guards lock.
    cell: Box<dyn std::any::Any + Send + Sync>,
    /// Present once it is begun.
    pub(super) flags: Option<LiveFlags>,
}

type Hook = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Work for afterwards, in the order in which it was left.
#[derive(Default)]
pub(super) struct Hooks {
    pub(super) after_commit: Vec<Hook>,
    pub(super) after_rollback: Vec<Hook>,
}

/// What a hook may return: nothing, or a result whose error is logged.
pub trait HookOutput {
    /// Logs the error, if there is one.
    fn log_error(self);
}

impl HookOutput for () {
    fn log_error(self) {}
}

impl<E: Display> HookOutput for Result<(), E> {
    fn log_error(self) {
        if let Err(error) = self {
            tracing::error!(%error, "a hook failed; the request it belongs to is settled all the same");
        }
    }
}

/// A transaction that is locked for one guard.
pub(super) struct Loaned<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    pub(super) lent: OwnedMutexGuard<Option<Lent<D>>>,
    pub(super) flags: LiveFlags,
}

impl Outstanding {
    /// The registry of `request`, made now if this is its first use.
    ///
    /// # Errors
    ///
    /// [`Error::NoSettlement`] in a service without `Settlement`.
    pub fn of<'r>(request: &'r Request<'_>) -> Result<&'r Arc<Self>, Error> {
        let context = RequestContext::of(request).ok_or(Error::NoSettlement)?;
        let settings = request
            .rocket()
            .state::<Settings>()
            .ok_or(Error::NoSettlement)?;
        let outstanding = context.outstanding_or(|| {
            Arc::new(Self {
                request: context.id,
                live: settings.live.clone(),
                panics: PanicWatch::here(),
                state: Mutex::default(),
            })
        });
        let route = request.route().and_then(|route| route.name.clone());
        outstanding.state.lock().route = route;
        Ok(outstanding)
    }

    /// Joins a resource: it is settled with everything else.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the resource is dropped.
    pub fn join<R: Resource>(&self, resource: R) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Settled);
        }
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
    /// says failure stays; one that says success becomes `status`, with `reason` in its body. The
    /// first doom counts.
    pub fn doom(&self, status: Status, reason: impl Into<Cow<'static, str>>) {
        let mut state = self.state.lock();
        state.used = true;
        state.doom.get_or_insert((status, reason.into()));
    }

    /// Runs `hook` once everything has been committed, outside the request's time, after the hooks
    /// that were left before it. It runs never if anything is rolled back or in doubt. Shutdown
    /// waits for it, bounded; a process that is killed forgets it.
    pub fn after_commit<F>(&self, hook: F)
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        let hook = async move { hook.await.log_error() };
        self.state.lock().hooks.after_commit.push(Box::pin(hook));
    }

    /// The twin of [`after_commit`](Self::after_commit) for when everything was rolled back.
    pub fn after_rollback<F>(&self, hook: F)
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        let hook = async move { hook.await.log_error() };
        self.state.lock().hooks.after_rollback.push(Box::pin(hook));
    }

    /// Hands out the transaction of `D`, and begins it if there is none.
    pub(super) async fn begin<D, M: Mode>(
        self: &Arc<Self>,
        pool: &D::Pool,
        guard: &'static str,
    ) -> Result<Loaned<D>, Error>
    where
        D: Database,
        D::Pool: TransactionPool,
    {
        let (beginning, options) = match self.checkout_or_reserve::<D, M>(pool, guard)? {
            Reserved::Open(loaned) => return Ok(loaned),
            Reserved::New(beginning, options) => (beginning, options),
        };
        match pool.open(options).await {
            Ok(transaction) => beginning.finish(transaction),
            Err(sqlx::Error::PoolTimedOut) if options.patience == Patience::Never => {
                Err(Error::OutOfOrder(D::NAME))
            }
            Err(error) => Err(Error::from(error)),
        }
    }

    /// Hands out the transaction of `D`, if there is one.
    pub(super) fn current<D, M: Mode>(&self) -> Option<Result<Loaned<D>, Error>>
    where
        D: Database,
        D::Pool: TransactionPool,
    {
        self.state.lock().open::<D, M>()
    }

    fn checkout_or_reserve<D, M: Mode>(
        self: &Arc<Self>,
        pool: &D::Pool,
        guard: &'static str,
    ) -> Result<Reserved<D>, Error>
    where
        D: Database,
        D::Pool: TransactionPool,
    {
        let mut state = self.state.lock();
        state.used = true;
        if state.closed {
            return Err(Error::Settled);
        }
        if let Some(open) = state.open::<D, M>() {
            return open.map(Reserved::Open);
        }
        if state.reading.contains(&TypeId::of::<D>()) {
            return Err(Error::SecondConnection(D::NAME));
        }
        let rank = pool.link().get().ok_or(Error::NotAttached(D::NAME))?.rank;
        let out_of_order = state.databases().any(|other| other.rank > rank);
        let cell: Cell<D> = Arc::default();
        let lent = checkout(&cell)?;
        state.entries.push(Entry::Database(Lending {
            database: TypeId::of::<D>(),
            name: D::NAME,
            guard,
            rank,
            isolation: M::ISOLATION,
            access: M::ACCESS,
            since: Instant::now(),
            loan: Arc::clone(&cell) as Arc<dyn Loan>,
            cell: Box::new(cell),
            flags: None,
        }));
        let options = BeginOptions {
            isolation: M::ISOLATION,
            access: M::ACCESS,
            patience: if out_of_order {
                Patience::Never
            } else {
                Patience::Wait
            },
        };
        let beginning = Beginning {
            outstanding: Arc::clone(self),
            guard,
            lent: Some(lent),
        };
        Ok(Reserved::New(beginning, options))
    }

    /// A `Read` of `D` begins. Ends with [`reading_ends`](Self::reading_ends).
    pub(super) fn reading_begins<D: Database>(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        let database = TypeId::of::<D>();
        let open = state
            .databases()
            .any(|lending| lending.database == database);
        if open || state.reading.contains(&database) {
            return Err(Error::SecondConnection(D::NAME));
        }
        state.reading.push(database);
        Ok(())
    }

    pub(super) fn reading_ends<D: Database>(&self) {
        self.state
            .lock()
            .reading
            .retain(|database| *database != TypeId::of::<D>());
    }

    /// A guard failed before its handler ran.
    pub(super) fn fail(&self, problem: Problem) {
        self.state.lock().failure.get_or_insert(problem);
    }

    pub(super) fn failure(&self) -> Option<Problem> {
        self.state.lock().failure.clone()
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

    /// Lets nothing join any more, and hands everything over.
    pub(super) fn close(&self) -> State {
        let mut state = self.state.lock();
        std::mem::replace(
            &mut *state,
            State {
                closed: true,
                ..State::default()
            },
        )
    }
}

impl State {
    fn databases(&self) -> impl Iterator<Item = &Lending> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Database(lending) => Some(lending),
            Entry::Resource(..) => None,
        })
    }

    /// The open transaction of `D`, locked for one guard, if it is as strict as `M` asks.
    fn open<D, M: Mode>(&self) -> Option<Result<Loaned<D>, Error>>
    where
        D: Database,
        D::Pool: TransactionPool,
    {
        let lending = self
            .databases()
            .find(|lending| lending.database == TypeId::of::<D>())?;
        let cell = lending.cell.downcast_ref::<Cell<D>>()?;
        if M::ISOLATION > lending.isolation || M::ACCESS > lending.access {
            return Some(Err(Error::Weaker(D::NAME)));
        }
        // While it is being begun the cell is locked, and there are no flags yet.
        let flags = lending.flags.clone().ok_or(Error::CheckedOut(D::NAME));
        Some(flags.and_then(|flags| {
            Ok(Loaned {
                lent: checkout(cell)?,
                flags,
            })
        }))
    }
}

enum Reserved<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    Open(Loaned<D>),
    New(Beginning<D>, BeginOptions),
}

/// A line of the registry whose transaction is being begun. Dropping it, because BEGIN failed or
/// was abandoned, takes the line back.
struct Beginning<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    outstanding: Arc<Outstanding>,
    guard: &'static str,
    lent: Option<OwnedMutexGuard<Option<Lent<D>>>>,
}

impl<D> Beginning<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    fn finish(
        mut self,
        transaction: crate::db::Transaction<<D::Pool as TransactionPool>::Session>,
    ) -> Result<Loaned<D>, Error> {
        let mut state = self.outstanding.state.lock();
        let database = TypeId::of::<D>();
        let route = state.route.clone();
        let lending = state.entries.iter_mut().find_map(|entry| match entry {
            Entry::Database(lending) if lending.database == database => Some(lending),
            _ => None,
        });
        // Without its line the request was settled meanwhile: the transaction rolls back here.
        let (Some(lending), Some(mut lent)) = (lending, self.lent.take()) else {
            return Err(Error::Settled);
        };
        let name = D::NAME.into();
        let live = self
            .outstanding
            .live
            .enter(self.outstanding.request, route, name, self.guard);
        let flags = live.flags();
        lending.flags = Some(flags.clone());
        *lent = Some(Lent::new(transaction, live));
        Ok(Loaned { lent, flags })
    }
}

impl<D> Drop for Beginning<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    fn drop(&mut self) {
        if self.lent.is_some() {
            let database = TypeId::of::<D>();
            self.outstanding.state.lock().entries.retain(
                |entry| !matches!(entry, Entry::Database(lending) if lending.database == database),
            );
        }
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for &'r Outstanding {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Guard<Self, Error> {
        match Outstanding::of(request) {
            Ok(outstanding) => Guard::Success(outstanding),
            Err(error) => Guard::Error((error.status(), error)),
        }
    }
}

impl Sentinel for &Outstanding {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        super::settlement::is_missing(rocket)
    }
}
