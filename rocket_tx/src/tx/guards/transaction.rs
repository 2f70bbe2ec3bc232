//! The guards for handlers that write.

use std::any::type_name;
use std::fmt;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Ignite, Rocket, Sentinel};
use tokio::sync::{OwnedMappedMutexGuard, OwnedMutexGuard};

use super::advice::{advise_on_body, advise_on_order};
use super::launch;
use super::registry::guard_failed;
use crate::db::{ConnectionOf, SessionOf, TransactionalDatabase, executor};
use crate::tx::failure::Error;
use crate::tx::monitor::LiveFlags;
use crate::tx::registry::{CheckedOut, Mode, OpenTransaction, Outstanding, ReadWrite};

/// A connection inside the request's transaction of `D`.
///
/// It dereferences to sqlx's connection, and is an [`Executor`](sqlx::Executor) itself: both
/// `.execute(&mut *tx)` and `.execute(&mut tx)` work. With a [`UrlPool`](crate::db::UrlPool) it
/// dereferences to a [`UrlConnection`](crate::db::UrlConnection), on which
/// [`with_backend!`](crate::with_backend) runs statements. sqlx's own `begin` on it creates a savepoint.
///
/// The response decides whether the transaction is committed or rolled back. This is done before
/// the first byte of the response leaves.
///
/// The parameter `M` sets the isolation. A handler cannot change it with `SET TRANSACTION`:
/// Postgres refuses that statement, because this library has already created a savepoint.
///
/// As a guard, `Tx<D>` begins the transaction before the request's body is read. If a client sends
/// its body slowly, other requests could not use the connection meanwhile. Handlers with a body
/// take [`Begin<D>`] instead.
///
/// ```
/// use rocket_tx::db::SqlitePool;
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx::{sqlx, Error, Tx};
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(SqlitePool);
///
/// #[rocket::delete("/todos/<id>")]
/// async fn delete(mut tx: Tx<Main>, id: i64) -> Result<(), Error> {
///     sqlx::query("DELETE FROM todos WHERE id = $1").bind(id).execute(&mut *tx).await?;
///     Ok(())
/// }
/// ```
///
/// # Functions of your own
///
/// A function that only runs queries takes sqlx's connection, so it works outside of requests too. A
/// function may also take the guard. Both are called with `&mut tx`.
///
/// ```
/// use rocket_tx::db::PostgresPool;
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx::{sqlx, Error, Tx};
/// use sqlx::PgConnection;
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(PostgresPool);
///
/// async fn count(db: &mut PgConnection) -> sqlx::Result<i64> {
///     sqlx::query_scalar("SELECT count(*) FROM todos").fetch_one(db).await
/// }
///
/// async fn clear(tx: &mut Tx<Main>) -> sqlx::Result<()> {
///     sqlx::query("DELETE FROM todos").execute(tx).await.map(drop)
/// }
///
/// #[rocket::delete("/todos")]
/// async fn delete_all(mut tx: Tx<Main>) -> Result<String, Error> {
///     let deleted = count(&mut tx).await?;
///     clear(&mut tx).await?;
///     Ok(deleted.to_string())
/// }
/// ```
///
/// # The handler does not commit
///
/// ```compile_fail,E0277
/// # use rocket_tx::db::SqlitePool;
/// # use rocket_tx::rocket_db_pools::{self, Database};
/// # use rocket_tx::{Error, Tx};
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// #[rocket::delete("/todos")]
/// async fn delete_all(tx: Tx<Main>) -> Result<(), Error> {
///     tx.commit().await // the response decides whether `Tx<Main>` is committed, not the handler
/// }
/// ```
///
/// # Several guards in one request
///
/// The guards of one request share one transaction per database, one after the other. While one
/// guard holds the transaction, a second guard fails with [`Error::CheckedOut`]. The second guard
/// never waits.
///
/// # Errors
///
/// As a guard, `Tx` fails with an [`Error`] and the status of that error, and the request is rolled
/// back.
///
/// # Drop
///
/// Dropping the guard checks the transaction in.
///
/// If a guard outlives its request, the response becomes a 500, and the transaction is condemned:
/// it can never commit. On Postgres, settlement ends the transaction's session at the server before
/// the response leaves, and every later statement of the guard fails. On SQLite, the transaction is
/// rolled back when the guard is dropped.
pub struct Tx<D: TransactionalDatabase, M = ReadWrite> {
    connection: OwnedMappedMutexGuard<Option<OpenTransaction<D>>, ConnectionOf<D>>,
    flags: LiveFlags,
    outstanding: Arc<Outstanding>,
    mode: PhantomData<fn() -> M>,
}

impl<D: TransactionalDatabase, M: Mode> Tx<D, M> {
    /// Checks out the request's open transaction of `D`, if it has one. For code around handlers:
    /// route decorators, repositories, fairings.
    ///
    /// # Errors
    ///
    /// [`Error::CheckedOut`] while another guard holds the transaction. [`Error::Weaker`] if the
    /// transaction has less isolation or access than `M` requires. The errors of
    /// [`Outstanding::of`].
    pub fn current(request: &Request<'_>) -> Result<Option<Self>, Error> {
        Self::current_in(Outstanding::of(request)?)
    }

    /// Does the same as [`current`](Self::current), for code that outlives the borrow of the
    /// request.
    ///
    /// # Errors
    ///
    /// [`Error::CheckedOut`] and [`Error::Weaker`], as [`current`](Self::current).
    pub fn current_in(outstanding: &Arc<Outstanding>) -> Result<Option<Self>, Error> {
        let checked_out = outstanding.current::<D, M>().transpose()?;
        checked_out
            .map(|checked_out| Self::new(checked_out, outstanding))
            .transpose()
    }

    fn new(checked_out: CheckedOut<D>, outstanding: &Arc<Outstanding>) -> Result<Self, Error> {
        let CheckedOut { open, flags } = checked_out;
        let connection = OwnedMutexGuard::try_map(open, |open| {
            open.as_mut().map(|open| open.transaction().connection())
        })
        // The slot is empty after the settlement.
        .map_err(|_| Error::Settled)?;
        flags.checked_out(true);
        Ok(Self {
            connection,
            flags,
            outstanding: Arc::clone(outstanding),
            mode: PhantomData,
        })
    }
}

/// Not implemented for any type. So a call of [`Tx::commit`] or [`Tx::rollback`] does not compile, and
/// the compiler says what to do instead.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "the response decides whether `{Self}` is committed, not the handler",
    label = "remove this call",
    note = "a success commits and an error rolls back; to decide otherwise, return a `rocket_tx::tx::Commit` or a `rocket_tx::tx::Rollback`"
)]
pub trait EndedByHandler {}

#[doc(hidden)]
impl<D: TransactionalDatabase, M> Tx<D, M> {
    pub fn commit(self) -> Ready<Result<(), Error>>
    where
        Self: EndedByHandler,
    {
        ready(Ok(()))
    }

    pub fn rollback(self) -> Ready<Result<(), Error>>
    where
        Self: EndedByHandler,
    {
        ready(Ok(()))
    }
}

impl<D: TransactionalDatabase, M> fmt::Debug for Tx<D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tx").field(&D::NAME).finish()
    }
}

executor!(Tx<D, M>, of SessionOf<D>, where D: TransactionalDatabase, M);

impl<D: TransactionalDatabase, M> Deref for Tx<D, M> {
    type Target = ConnectionOf<D>;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<D: TransactionalDatabase, M> DerefMut for Tx<D, M> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<D: TransactionalDatabase, M> Drop for Tx<D, M> {
    fn drop(&mut self) {
        self.flags.checked_out(false);
        if std::thread::panicking() {
            self.outstanding.panicked();
        }
    }
}

#[rocket::async_trait]
impl<'r, D: TransactionalDatabase, M: Mode> FromRequest<'r> for Tx<D, M> {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        guarded(request, Begin::<D, M>::of(request), type_name::<Self>()).await
    }
}

/// A transaction of `D` that the handler begins itself. Until then, it holds no connection.
///
/// Rocket runs guards before it reads the body. A handler with a body takes `Begin`, so that no
/// connection is held while a slow client sends the body.
///
/// ```
/// use rocket::serde::json::Json;
/// use rocket_tx::db::SqlitePool;
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx::{sqlx, Begin, Error};
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(SqlitePool);
///
/// #[rocket::post("/todos", data = "<title>")]
/// async fn create(begin: Begin<Main>, title: Json<String>) -> Result<(), Error> {
///     let mut tx = begin.begin().await?;
///     sqlx::query("INSERT INTO todos (title) VALUES ($1)").bind(&*title).execute(&mut *tx).await?;
///     Ok(())
/// }
/// ```
///
/// A query runs on the `Tx` that [`begin`](Self::begin) returns, and not on the `Begin`:
///
/// ```compile_fail,E0277
/// # use rocket_tx::db::SqlitePool;
/// # use rocket_tx::rocket_db_pools::{self, Database};
/// # use rocket_tx::{sqlx, Begin, Error};
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// #[rocket::post("/todos", data = "<title>")]
/// async fn create(mut begin: Begin<Main>, title: String) -> Result<(), Error> {
///     sqlx::query("INSERT INTO todos (title) VALUES ($1)").bind(title).execute(&mut begin).await?;
///     Ok(())
/// }
/// ```
pub struct Begin<D: TransactionalDatabase, M = ReadWrite> {
    pub(super) outstanding: Arc<Outstanding>,
    pool: D::Pool,
    mode: PhantomData<fn() -> (D, M)>,
}

impl<D: TransactionalDatabase, M: Mode> Begin<D, M> {
    /// Begins the transaction, or checks out the one that the request already has.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] or [`Error::OutOfOrder`] (503) if no connection was free in time.
    /// [`Error::CheckedOut`], [`Error::Weaker`], [`Error::SecondConnection`] and [`Error::Settled`]
    /// report a mistake in the handler.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the transaction is not left outstanding.
    pub async fn begin(&self) -> Result<Tx<D, M>, Error> {
        self.begin_for(type_name::<Self>()).await
    }

    pub(super) async fn begin_for(&self, guard: &'static str) -> Result<Tx<D, M>, Error> {
        advise_on_order::<D>(&self.outstanding, &self.pool);
        let checked_out = self.outstanding.begin::<D, M>(&self.pool, guard).await?;
        Tx::new(checked_out, &self.outstanding)
    }

    fn of(request: &Request<'_>) -> Result<Self, Error> {
        let outstanding = Outstanding::of(request)?;
        outstanding.mark_wanted();
        let database = launch::attached::<D>(request)?;
        Ok(Self::in_request(outstanding, database))
    }

    /// Creates a `Begin` for the request of `outstanding`, outside of a request guard.
    pub fn in_request(outstanding: &Arc<Outstanding>, pool: &D::Pool) -> Self {
        Self {
            outstanding: Arc::clone(outstanding),
            pool: pool.clone(),
            mode: PhantomData,
        }
    }
}

impl<D: TransactionalDatabase, M> fmt::Debug for Begin<D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Begin").field(&D::NAME).finish()
    }
}

/// Not implemented for any type. So a query on a [`Begin`] does not compile, and the compiler says what
/// to do first.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a query cannot run on `{Self}`, because it has not begun the transaction",
    label = "no transaction has begun here",
    note = "begin it: `let mut tx = begin.begin().await?;`, and run the query on `&mut tx`"
)]
pub trait Begun<C>: DerefMut<Target = C> {}

executor!(
    #[doc(hidden)]
    Begin<D, M>, of SessionOf<D>, where D: TransactionalDatabase, M; if Begun<ConnectionOf<D>>
);

#[rocket::async_trait]
impl<'r, D: TransactionalDatabase, M: Mode> FromRequest<'r> for Begin<D, M> {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        match Self::of(request) {
            Ok(begin) => Outcome::Success(begin),
            Err(error) => guard_failed(request, error),
        }
    }
}

async fn guarded<D: TransactionalDatabase, M: Mode>(
    request: &Request<'_>,
    begin: Result<Begin<D, M>, Error>,
    guard: &'static str,
) -> Outcome<Tx<D, M>, Error> {
    let result = match begin {
        Ok(begin) => {
            advise_on_body::<D>(request, &begin.pool);
            begin.begin_for(guard).await
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(tx) => Outcome::Success(tx),
        Err(error) => guard_failed(request, error),
    }
}

impl<D: TransactionalDatabase, M> Sentinel for Tx<D, M> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        launch::check_launch::<D>(rocket)
    }
}

impl<D: TransactionalDatabase, M> Sentinel for Begin<D, M> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        launch::check_launch::<D>(rocket)
    }
}
