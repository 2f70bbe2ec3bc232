//! The guard for handlers that only read.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Ignite, Rocket, Sentinel};
use rocket_db_pools::Database;
use tracing::Instrument;

use super::advice::advise_on_order;
use super::launch;
use super::registry::fail_request;
use crate::db::{
    Access, ConnectionOf, Session, SessionOf, TransactionPool, TransactionalDatabase, executor,
};
use crate::tx::failure::Error;
use crate::tx::registry::{Outstanding, rank_of};
use crate::tx::running_body::RunningBody;

/// A connection of `D` that only reads: there is no transaction, and each query takes one round
/// trip.
///
/// Each query sees the latest commits. For one consistent view across several queries, use
/// [`Tx<D, ReadOnly>`](crate::tx::ReadOnly).
///
/// A write through a `Read` fails at the database: on SQLite the connection is `query_only`, on
/// Postgres the session's transactions are read-only by default. This protects against mistakes
/// only: on Postgres, a handler that sends `BEGIN READ WRITE` can write.
///
/// If a `Read` is dropped before all rows of a query were read, the remaining rows are discarded,
/// or the session is closed, before another request gets the session.
///
/// # Several connections
///
/// A request has at most one connection of a database. Therefore a `Read<D>` beside an open
/// `Tx<D>`, or beside another `Read<D>`, fails with [`Error::SecondConnection`]. `Read`s of several
/// databases are taken in the order of attachment, like transactions.
///
/// # Streaming
///
/// A `Read` is not outstanding: it can be moved into the response, and a body can stream from it.
/// Then the client's speed decides how long the connection of the `Read` is in use. If the client
/// reads nothing of the body for `read_idle_timeout` (30 s by default), the client's connection is
/// closed and the body is dropped. The client can see that the response is incomplete.
///
/// This limit applies to a body that has used a `Read` while it was being sent. It does not apply:
///
/// - to a `Read` that a task of the request uses,
/// - while the body waits for a reply of the database (on Postgres, `statement_timeout` limits that
///   wait),
/// - to an upgraded connection (a WebSocket),
/// - to a [`rocket_db_pools::Connection`] in a body.
///
/// # Examples
///
/// ```
/// use rocket_tx::db::SqlitePool;
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx::{sqlx, Error, Read};
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(SqlitePool);
///
/// #[rocket::get("/todos/count")]
/// async fn count(mut read: Read<Main>) -> Result<String, Error> {
///     let count: i64 = sqlx::query_scalar("SELECT count(*) FROM todos").fetch_one(&mut *read).await?;
///     Ok(count.to_string())
/// }
/// ```
pub struct Read<D: TransactionalDatabase> {
    session: <D::Pool as TransactionPool>::Session,
    registration: ReadRegistration<D>,
}

/// The entry of a `Read` in its request's registry. Dropping it removes the entry.
struct ReadRegistration<D: Database> {
    outstanding: Arc<Outstanding>,
    /// `true` if the last use of the `Read` was by the body of the response.
    by_body: Arc<AtomicBool>,
    database: PhantomData<fn() -> D>,
}

impl<D: Database> ReadRegistration<D> {
    /// Records whether the body of the response is using the `Read` now.
    fn record_use(&self) {
        let by_body = RunningBody::is_of(self.outstanding.request_id());
        self.by_body.store(by_body, Ordering::Relaxed);
    }
}

impl<D: Database> Drop for ReadRegistration<D> {
    fn drop(&mut self) {
        self.outstanding.reading_ends::<D>();
    }
}

impl<D: TransactionalDatabase> Read<D> {
    async fn of(request: &Request<'_>) -> Result<Self, Error> {
        let outstanding = Outstanding::of(request)?;
        let database = launch::attached::<D>(request)?;
        Self::in_request(outstanding, database).await
    }

    /// Opens a `Read` for the request of `outstanding`, outside of a request guard.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] or [`Error::OutOfOrder`] (503) if no connection was free in time.
    /// [`Error::SecondConnection`] while the request has a connection of `D`.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, nothing is left of the `Read`: the request may open another one.
    pub async fn in_request(outstanding: &Arc<Outstanding>, pool: &D::Pool) -> Result<Self, Error> {
        let _turn = outstanding.acquire_in_turn().await;
        let rank = rank_of::<D>(pool)?;
        advise_on_order::<D>(outstanding, pool);
        let by_body = Arc::<AtomicBool>::default();
        let wait = outstanding.reading_begins::<D>(rank, Arc::clone(&by_body))?;
        // Created before the wait: if the future is dropped while it waits, the entry is removed.
        let registration = ReadRegistration {
            outstanding: Arc::clone(outstanding),
            by_body,
            database: PhantomData,
        };
        let started = Instant::now();
        let span = tracing::debug_span!("read", database = D::NAME);
        let acquiring = pool.session(Access::ReadOnly, wait).instrument(span);
        let session = match acquiring.await {
            Err(sqlx::Error::PoolTimedOut) if !wait.queues() => {
                return Err(Error::OutOfOrder(D::NAME));
            }
            session => session?,
        };
        let waited = started.elapsed();
        outstanding
            .observers
            .notify(|observer| observer.read_acquired(outstanding.request, D::NAME, waited));
        Ok(Self {
            session,
            registration,
        })
    }

    /// Says that the connection is as it was when this `Read` was created. For a
    /// [`Lookup`](super::Lookup) only.
    pub(super) fn mark_unchanged(&mut self) {
        self.session.mark_unchanged();
    }
}

impl<D: TransactionalDatabase> fmt::Debug for Read<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Read").field(&D::NAME).finish()
    }
}

executor!(Read<D>, of SessionOf<D>, where D: TransactionalDatabase);

impl<D: TransactionalDatabase> Deref for Read<D> {
    type Target = ConnectionOf<D>;

    fn deref(&self) -> &Self::Target {
        self.registration.record_use();
        self.session.connection_ref()
    }
}

impl<D: TransactionalDatabase> DerefMut for Read<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.registration.record_use();
        self.session.connection()
    }
}

#[rocket::async_trait]
impl<'r, D: TransactionalDatabase> FromRequest<'r> for Read<D> {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        match Self::of(request).await {
            Ok(read) => Outcome::Success(read),
            Err(error) => fail_request(request, error),
        }
    }
}

impl<D: TransactionalDatabase> Sentinel for Read<D> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        launch::check_launch::<D>(rocket)
    }
}
