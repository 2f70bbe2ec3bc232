//! The guard for handlers that only read.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Ignite, Rocket, Sentinel};
use rocket_db_pools::Database;
use tracing::Instrument;

use super::launch;
use super::registry::failed_to_read;
use crate::db::{Access, Session, TransactionPool, TransactionalDatabase};
use crate::tx::failure::Error;
use crate::tx::registry::{ConnectionOf, Outstanding, rank_of};
use crate::tx::running_body::RunningBody;

/// A connection of `D` that only reads: no transaction, one round trip a query.
///
/// A write through it fails at the database: on SQLite the connection is `query_only`, on Postgres
/// the session's transactions are read-only unless they say otherwise. That stops a mistake; a
/// handler that sends `BEGIN READ WRITE` by itself can write there. Each query sees the latest commits; for one view across several take
/// [`Tx<D, ReadOnly>`](crate::tx::ReadOnly).
///
/// A `Read` is not outstanding: it may be moved into the response, and a body may stream from it.
/// Then the client sets the pace, and has a limit: when it takes no byte of the body for
/// `read_idle_timeout` (30 s by default), its connection is closed, and the body is dropped. The client
/// sees that the response is not complete. A body counts as holding a `Read` once it has used it while
/// it was sent; a task of the request that keeps one does not count. The limit does not count while the body waits for its own
/// statement; there `statement_timeout` does, on Postgres. It does not hold for an upgraded connection
/// (a WebSocket), nor for a [`rocket_db_pools::Connection`] in a body.
///
/// Dropped in the middle of a query's rows, the session is drained or closed before another request
/// gets it.
///
/// A request has one connection of a database at most, so `Read<D>` beside an open `Tx<D>`, or
/// another `Read<D>`, is [`Error::SecondConnection`]. Reads of several databases are taken in the
/// order of attachment, as transactions are.
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

/// Holds the place of a `Read` in its request.
struct ReadRegistration<D: Database> {
    outstanding: Arc<Outstanding>,
    /// What used it last is the body of the response.
    by_body: Arc<AtomicBool>,
    database: PhantomData<fn() -> D>,
}

impl<D: Database> ReadRegistration<D> {
    /// The `Read` is used, by whatever is running.
    fn is_used(&self) {
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

    /// For what reads in a request's name without being a guard.
    ///
    /// # Errors
    ///
    /// 503 when no connection was free in time: [`Error::Busy`] or [`Error::OutOfOrder`].
    /// [`Error::SecondConnection`] while the request has a connection of `D`.
    ///
    /// # Cancellation
    ///
    /// Dropping the future gives the place back.
    pub async fn in_request(outstanding: &Arc<Outstanding>, pool: &D::Pool) -> Result<Self, Error> {
        let _turn = outstanding.acquire_in_turn().await;
        let rank = rank_of::<D>(pool)?;
        let by_body = Arc::<AtomicBool>::default();
        let wait = outstanding.reading_begins::<D>(rank, Arc::clone(&by_body))?;
        // Made before the wait: dropped in it, the place is given back.
        let registration = ReadRegistration {
            outstanding: Arc::clone(outstanding),
            by_body,
            database: PhantomData,
        };
        let asked = Instant::now();
        let span = tracing::debug_span!("read", database = D::NAME);
        let entry = pool.session(Access::ReadOnly, wait).instrument(span);
        let session = match entry.await {
            Err(sqlx::Error::PoolTimedOut) if !wait.queues() => {
                return Err(Error::OutOfOrder(D::NAME));
            }
            session => session?,
        };
        let waited = asked.elapsed();
        outstanding
            .observers
            .notify(|observer| observer.read_acquired(outstanding.request, D::NAME, waited));
        Ok(Self {
            session,
            registration,
        })
    }
}

impl<D: TransactionalDatabase> Deref for Read<D> {
    type Target = ConnectionOf<D>;

    fn deref(&self) -> &Self::Target {
        self.registration.is_used();
        self.session.connection_ref()
    }
}

impl<D: TransactionalDatabase> DerefMut for Read<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.registration.is_used();
        self.session.connection()
    }
}

#[rocket::async_trait]
impl<'r, D: TransactionalDatabase> FromRequest<'r> for Read<D> {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        match Self::of(request).await {
            Ok(read) => Outcome::Success(read),
            Err(error) => failed_to_read(request, error),
        }
    }
}

impl<D: TransactionalDatabase> Sentinel for Read<D> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        launch::check_launch::<D>(rocket)
    }
}
