//! A request with a key: looking for an earlier response, and claiming the key.

use std::any::{TypeId, type_name};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocket::futures::future::{BoxFuture, FutureExt};
use rocket::{Request, tokio};
use rocket_tx::db::{Access, Session, TransactionPool, WaitPolicy};
use rocket_tx::extend::attached;
use rocket_tx::tx::{BeginStep, BorrowedTransaction};
use rocket_tx::{Error, Outstanding, Read};

use crate::hash::{Fingerprint, Head, Scope};
use crate::in_flight::Permit;
use crate::initializer::Shared;
use crate::key::Key;
use crate::problems;
use crate::rows::{Attempt, KeyDatabase, KeyRows, Row};
use crate::stored;

/// For clients whose request has an unknown outcome.
const ADVICE: &str = "To check, send the request again with the same `Idempotency-Key`: its response \
                      tells what happened.";

/// A request with a key.
pub(crate) struct Keyed<D: KeyDatabase> {
    shared: Arc<Shared<D>>,
    pub(crate) outstanding: Arc<Outstanding>,
    pool: D::Pool,
    pub(crate) scope: Scope,
    head: Head,
    /// The first bytes of the body. Rocket lets a route decorator see no more.
    beginning: Vec<u8>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The fingerprint of the whole body; or of its beginning, if the key is claimed before the
    /// whole body is known.
    fingerprint: Option<Fingerprint>,
    /// The request's transaction has claimed the key.
    is_claimed: bool,
    /// The database was searched for a committed row with the key, before the handler ran.
    was_looked_up: bool,
    permit: Option<Permit>,
}

impl<D: KeyDatabase> Keyed<D> {
    /// Makes the request claim the key when its transaction of `D` begins.
    pub(crate) fn start(
        request: &Request<'_>,
        shared: &Arc<Shared<D>>,
        caller: &str,
        key: &Key,
        beginning: Vec<u8>,
    ) -> Result<Arc<Self>, Error> {
        let outstanding = Outstanding::of(request)?;
        let pool: &D::Pool = attached::<D>(request)?;
        if outstanding.open_mode::<D>().is_some() {
            let reason = "a transaction has begun before the route with an idempotency key, in a \
                          fairing or in the hook for the caller; begin it in the handler or its \
                          guards";
            return Err(Error::NotSetUp(reason.into()));
        }
        let keyed = Arc::new(Self {
            shared: Arc::clone(shared),
            outstanding: Arc::clone(outstanding),
            pool: pool.clone(),
            scope: Scope::new(request, caller, key),
            head: Head::of(request),
            beginning,
            state: Mutex::default(),
        });
        outstanding.on_begin(Claim(Arc::clone(&keyed)))?;
        // Also a request that changes nothing stores its response.
        outstanding.require::<D>(pool)?;
        outstanding.capture_response(shared.settings.max_body)?;
        outstanding.advise_repeat::<D>(ADVICE);
        Ok(keyed)
    }

    /// Waits for an earlier request with the key, and looks for its response, now that the whole
    /// body is known.
    ///
    /// # Errors
    ///
    /// The error to respond with: [`Error::Replayed`] if the response is there.
    pub(crate) async fn body_is_known(&self, body: &[u8]) -> Result<(), Error> {
        {
            let mut state = self.state.lock();
            if state.is_claimed || state.fingerprint.is_some() {
                return Ok(());
            }
            state.fingerprint = Some(self.head.with_body(body));
        }
        // Another request may be waiting for a connection that this one holds.
        let longest = match self.outstanding.holds_a_connection() {
            true => Duration::ZERO,
            false => self.shared.settings.twin_wait,
        };
        let permit = self.shared.in_flight.enter(self.scope, longest).await;
        self.state.lock().permit = Some(permit.ok_or_else(problems::in_flight)?);
        let row = match Read::<D>::in_request(&self.outstanding, &self.pool).await {
            Ok(mut read) => read.find(&self.scope).await?,
            // The guards of the handler hold connections. The claim will find the row.
            Err(Error::SecondConnection(_) | Error::OutOfOrder(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.state.lock().was_looked_up = true;
        row.map_or(Ok(()), |row| Err(self.found(row)))
    }

    /// Looks again after a rollback. Another process may have served the same request meanwhile,
    /// and a handler that fails before it begins a transaction does not notice that.
    pub(crate) async fn look_again(&self) -> Result<(), Error> {
        {
            let state = self.state.lock();
            if state.is_claimed || !state.was_looked_up || self.outstanding.holds_a_connection() {
                return Ok(());
            }
        }
        let session = self.pool.session(Access::ReadOnly, WaitPolicy::FAIL_FAST);
        let row = session.await?.connection().find(&self.scope).await?;
        if let Some(row) = row
            && self.is_ours(&row)
        {
            self.outstanding.respond_with(stored::replay(row));
        }
        Ok(())
    }

    /// Records that the transaction that has claimed the key was rolled back. The next one claims it
    /// again.
    pub(crate) fn attempt_failed(&self) {
        self.state.lock().is_claimed = false;
    }

    /// Lets the next request with the same key continue.
    pub(crate) fn let_others_continue(&self) {
        self.state.lock().permit = None;
    }

    /// Returns the error of a request whose key has a committed row.
    fn found(&self, row: Row) -> Error {
        match self.is_ours(&row) {
            true => self.outstanding.respond_with(stored::replay(row)),
            false => problems::other_payload(),
        }
    }

    fn is_ours(&self, row: &Row) -> bool {
        row.fingerprint == self.fingerprint().as_bytes()
    }

    /// Returns the fingerprint by which the request is compared with others. From then on it does
    /// not change.
    fn fingerprint(&self) -> Fingerprint {
        let mut state = self.state.lock();
        let of_beginning = || self.head.with_beginning(&self.beginning);
        *state.fingerprint.get_or_insert_with(of_beginning)
    }

    /// Claims the key in the request's transaction.
    async fn claim<C: KeyRows>(&self, db: &mut C) -> Result<(), Error> {
        /// How often a claim is tried again while another process serves the same request. With
        /// jitter of half of it in both directions.
        const PAUSE: Duration = Duration::from_millis(20);

        let fingerprint = self.fingerprint();
        let deadline = Instant::now() + self.shared.settings.twin_wait;
        loop {
            let expiry = self.shared.settings.expiry;
            match db.claim(&self.scope, &fingerprint, expiry).await? {
                Attempt::Claimed => {
                    self.state.lock().is_claimed = true;
                    return Ok(());
                }
                Attempt::InFlight if Instant::now() >= deadline => {
                    return Err(problems::in_flight());
                }
                Attempt::InFlight => {
                    tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
                }
                Attempt::Taken => match db.find(&self.scope).await? {
                    Some(row) => return Err(self.found(row)),
                    None if Instant::now() >= deadline => return Err(problems::in_flight()),
                    // The row has expired after the attempt, or the sweep has deleted it.
                    None => {}
                },
            }
        }
    }
}

/// Claims the key at the beginning of the request's transaction.
struct Claim<D: KeyDatabase>(Arc<Keyed<D>>);

#[rocket::async_trait]
impl<D: KeyDatabase> BeginStep<D> for Claim<D> {
    async fn run(&self, mut transaction: BorrowedTransaction<'_, D>) -> Result<(), Error> {
        self.0.claim(transaction.connection()).await
    }
}

/// A [`Keyed`] without the type of its database.
pub(crate) trait AnyKeyed: Send + Sync {
    /// The type of the database that has the key.
    fn database(&self) -> TypeId;

    fn database_name(&self) -> &'static str;

    fn scope(&self) -> &Scope;

    fn body_is_known<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<(), Error>>;
}

impl<D: KeyDatabase> AnyKeyed for Keyed<D> {
    fn database(&self) -> TypeId {
        TypeId::of::<D>()
    }

    fn database_name(&self) -> &'static str {
        type_name::<D>()
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn body_is_known<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<(), Error>> {
        Keyed::body_is_known(self, body).boxed()
    }
}
