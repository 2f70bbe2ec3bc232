//! [`UrlPool`]: the URL selects the backend, and each query is written once.
//!
//! An enum wraps the drivers of both backends, and a macro compiles the same query for each driver.
//! The cost is one `match`. Every type that both drivers support can be used.

use std::sync::OnceLock;
use std::time::Duration;

use rocket::figment::Figment;

use super::{
    Access, AtomicDatabase, Attachment, Backend, BeginOptions, CommitError, Config, Decided,
    Decider, DeciderId, Decision, DecisionId, Durability, Ending, Finished, GlobalId, Identity,
    InDoubt, Migrations, NotReady, PoolError, RollbackError, Session, TransactionControl,
    TransactionId, TransactionPool, WaitPolicy, scheme,
};
#[cfg(feature = "postgres")]
use super::{PostgresPool, PostgresSession};
#[cfg(feature = "sqlite")]
use super::{SqlitePool, SqliteSession};

/// A pool whose URL selects the backend: `sqlite:…` or `postgres://…`.
///
/// Guards dereference to a [`UrlConnection`], and [`with_backend!`](crate::with_backend) runs a
/// statement on it. sqlx's `query!` and `query_as!` do not work here: they make code for the one
/// backend that they check the statement against. Use `sqlx::query` and `sqlx::query_as`.
///
/// ```
/// use rocket_tx::db::UrlPool;
/// use rocket_tx::rocket_db_pools::{self, Database};
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(UrlPool);
/// ```
#[derive(Clone)]
pub enum UrlPool {
    /// A SQLite file.
    #[cfg(feature = "sqlite")]
    Sqlite(SqlitePool),
    /// A Postgres database.
    #[cfg(feature = "postgres")]
    Postgres(PostgresPool),
}

/// A connection of a [`UrlPool`].
///
/// It is no executor of sqlx, because each backend has a type of its own:
/// [`with_backend!`](crate::with_backend) runs a statement on it. If the backends need different
/// statements, match on it.
pub enum UrlConnection {
    /// A connection to a SQLite file.
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteSession),
    /// A connection to Postgres.
    #[cfg(feature = "postgres")]
    Postgres(PostgresSession),
}

impl UrlConnection {
    /// Accepts every mutable reference that dereferences to a `UrlConnection`. For
    /// [`with_backend!`](crate::with_backend).
    #[doc(hidden)]
    pub fn of(connection: &mut Self) -> &mut Self {
        connection
    }
}

/// Runs an expression on the backend of a [`UrlConnection`](crate::db::UrlConnection).
///
/// The expression is compiled once for each backend that is enabled. The name between the bars is
/// bound to `&mut SqliteConnection` or `&mut PgConnection`. `$1`, `RETURNING` and `ON CONFLICT` mean
/// the same on both. The macro accepts every value that dereferences to a `UrlConnection`: `Tx`,
/// `Read`, `&mut UrlConnection`, and mutable references to them.
///
/// ```
/// use rocket_tx::db::UrlConnection;
/// use rocket_tx::{sqlx, with_backend};
///
/// async fn rename(connection: &mut UrlConnection, id: i64, title: &str) -> sqlx::Result<bool> {
///     let done = with_backend!(connection, |db| {
///         sqlx::query("UPDATE todos SET title = $1 WHERE id = $2")
///             .bind(title)
///             .bind(id)
///             .execute(db)
///             .await?
///             .rows_affected()
///     });
///     Ok(done == 1)
/// }
/// ```
///
/// # What the compiler reports
///
/// An error in the expression may concern only one of the backends, and names it: `Sqlite` or
/// `Postgres`.
///
/// | error | cause and mend |
/// | --- | --- |
/// | `&mut UrlConnection: Executor` is not satisfied | the statement is not in `with_backend!` |
/// | expected `&mut SqliteConnection`, found `&mut PgConnection` | the expression calls a function for one backend: let the function take `&mut UrlConnection`, and use the macro in it |
/// | expected `Sqlite`, found `Postgres` | the statement was made before the macro: make it inside |
/// | `u64: Encode<'_, Sqlite>` is not satisfied | a backend cannot store the type: use one that both can store, here `i64` |
/// | `match` arms have incompatible types | each backend has a type of its own for results and rows. Take from it what you need inside the macro, such as `.rows_affected()`, or end the statement with `;` in braces |
/// | use of moved value: `db` | more than one statement: `&mut *db` in all but the last |
/// | expected `&mut UrlConnection`, found `&mut SqliteConnection` | the pool is a `SqlitePool`: use the connection without the macro |
#[cfg(all(feature = "sqlite", feature = "postgres"))]
#[macro_export]
macro_rules! with_backend {
    ($connection:expr, |$db:ident| $body:expr) => {
        match $crate::db::UrlConnection::of(&mut *$connection) {
            $crate::db::UrlConnection::Sqlite(connection) => {
                let $db: &mut $crate::sqlx::SqliteConnection = &mut *connection;
                $body
            }
            $crate::db::UrlConnection::Postgres(connection) => {
                let $db: &mut $crate::sqlx::PgConnection = &mut *connection;
                $body
            }
        }
    };
    ($($other:tt)*) => {
        compile_error!("write `with_backend!(connection, |db| expression)`, without `mut`")
    };
}

/// Runs an expression on the SQLite connection in a [`UrlConnection`](crate::db::UrlConnection).
#[cfg(all(feature = "sqlite", not(feature = "postgres")))]
#[macro_export]
macro_rules! with_backend {
    ($connection:expr, |$db:ident| $body:expr) => {{
        let $crate::db::UrlConnection::Sqlite(connection) =
            $crate::db::UrlConnection::of(&mut *$connection);
        let $db: &mut $crate::sqlx::SqliteConnection = &mut *connection;
        $body
    }};
    ($($other:tt)*) => {
        compile_error!("write `with_backend!(connection, |db| expression)`, without `mut`")
    };
}

/// Runs an expression on the Postgres connection in a [`UrlConnection`](crate::db::UrlConnection).
#[cfg(all(feature = "postgres", not(feature = "sqlite")))]
#[macro_export]
macro_rules! with_backend {
    ($connection:expr, |$db:ident| $body:expr) => {{
        let $crate::db::UrlConnection::Postgres(connection) =
            $crate::db::UrlConnection::of(&mut *$connection);
        let $db: &mut $crate::sqlx::PgConnection = &mut *connection;
        $body
    }};
    ($($other:tt)*) => {
        compile_error!("write `with_backend!(connection, |db| expression)`, without `mut`")
    };
}

/// Matches on the backend, and runs the same expression on the value inside.
macro_rules! either {
    ($kind:ident, $on:expr, |$inner:ident| $body:expr) => {
        match $on {
            #[cfg(feature = "sqlite")]
            $kind::Sqlite($inner) => $body,
            #[cfg(feature = "postgres")]
            $kind::Postgres($inner) => $body,
        }
    };
}

impl Session for UrlConnection {
    type Connection = Self;

    fn connection(&mut self) -> &mut Self {
        // The session notes that it is used.
        either!(Self, self, |session| {
            session.connection();
        });
        self
    }

    fn connection_ref(&self) -> &Self {
        self
    }

    fn mark_unchanged(&mut self) {
        either!(Self, self, |session| session.mark_unchanged());
    }
}

impl TransactionControl for UrlConnection {
    fn owner(&mut self) -> &mut Option<TransactionId> {
        either!(Self, self, |session| session.owner())
    }

    fn is_new(&self) -> bool {
        either!(Self, self, |session| session.is_new())
    }

    async fn begin(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        either!(Self, self, |session| {
            TransactionControl::begin(session, options).await
        })
    }

    async fn prepare(&mut self) -> Result<(), CommitError> {
        either!(Self, self, |session| session.prepare().await)
    }

    async fn commit(&mut self) -> Result<Durability, CommitError> {
        either!(Self, self, |session| session.commit().await)
    }

    async fn prepare_among_several(&mut self) -> Result<(), CommitError> {
        either!(Self, self, |session| session.prepare_among_several().await)
    }

    fn may_have_written(&self) -> bool {
        either!(Self, self, |session| session.may_have_written())
    }

    async fn prepare_transaction(&mut self, id: &GlobalId) -> Result<(), CommitError> {
        either!(Self, self, |session| session.prepare_transaction(id).await)
    }

    async fn decide(&mut self, decision: &Decision) -> Result<Durability, CommitError> {
        either!(Self, self, |session| session.decide(decision).await)
    }

    async fn finish_prepared(&mut self, id: &GlobalId, decided: Decided) -> sqlx::Result<()> {
        either!(Self, self, |session| session
            .finish_prepared(id, decided)
            .await)
    }

    async fn detect_conflict(&mut self) -> sqlx::Result<()> {
        either!(Self, self, |session| session.detect_conflict().await)
    }

    fn hold_for_request(&mut self) {
        either!(Self, self, |session| session.hold_for_request());
    }

    async fn rollback(&mut self) -> Result<(), RollbackError> {
        either!(Self, self, |session| session.rollback().await)
    }

    fn ending(&self) -> Ending {
        either!(Self, self, |session| session.ending())
    }

    fn start_rollback(&mut self) {
        either!(Self, self, |session| session.start_rollback())
    }

    fn close_on_drop(&mut self) {
        either!(Self, self, |session| TransactionControl::close_on_drop(
            session
        ))
    }
}

impl UrlPool {
    async fn connect(config: &Config) -> Result<Self, PoolError> {
        let scheme = scheme::of(&config.url);
        match scheme.as_deref() {
            #[cfg(feature = "sqlite")]
            Some("sqlite") => Ok(Self::Sqlite(SqlitePool::connect(config).await?)),
            #[cfg(feature = "postgres")]
            Some("postgres" | "postgresql") => {
                Ok(Self::Postgres(PostgresPool::connect(config).await?))
            }
            // The URL may contain a password, so the error repeats only its scheme.
            _ => Err(PoolError::Url {
                reason: match &scheme {
                    Some(scheme) => format!("no backend for `{scheme}:`"),
                    None => "it names no backend".into(),
                },
                advice: "write sqlite:path/to/file.db or postgres://user@host/database, and enable \
                         the feature `sqlite` or `postgres` of `rocket_tx`",
            }),
        }
    }
}

#[rocket::async_trait]
impl AtomicDatabase for UrlPool {
    fn backend(&self) -> Backend {
        either!(Self, self, |pool| pool.backend())
    }

    async fn obstacle(&self) -> sqlx::Result<Option<&'static str>> {
        either!(Self, self, |pool| pool.obstacle().await)
    }

    async fn create_decisions(&self) -> Result<(), PoolError> {
        either!(Self, self, |pool| pool.create_decisions().await)
    }

    async fn decider(&self) -> sqlx::Result<Option<Decider>> {
        either!(Self, self, |pool| pool.decider().await)
    }

    async fn decide_or_abort(&self, decider: &Decider, id: DecisionId) -> sqlx::Result<Decided> {
        either!(Self, self, |pool| pool.decide_or_abort(decider, id).await)
    }

    async fn forget(&self, decider: &Decider, ids: &[DecisionId]) -> sqlx::Result<()> {
        either!(Self, self, |pool| pool.forget(decider, ids).await)
    }

    async fn old_decisions(
        &self,
        decider: &Decider,
        age: Duration,
        known: &[DeciderId],
    ) -> sqlx::Result<Vec<DecisionId>> {
        either!(Self, self, |pool| pool
            .old_decisions(decider, age, known)
            .await)
    }

    async fn in_doubt(&self) -> sqlx::Result<Vec<InDoubt>> {
        either!(Self, self, |pool| pool.in_doubt().await)
    }

    async fn finish(&self, id: &GlobalId, decided: Decided) -> sqlx::Result<Finished> {
        either!(Self, self, |pool| pool.finish(id, decided).await)
    }
}

impl TransactionPool for UrlPool {
    type Session = UrlConnection;

    async fn session(&self, access: Access, wait: WaitPolicy) -> sqlx::Result<UrlConnection> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(pool) => pool.session(access, wait).await.map(UrlConnection::Sqlite),
            #[cfg(feature = "postgres")]
            Self::Postgres(pool) => pool
                .session(access, wait)
                .await
                .map(UrlConnection::Postgres),
        }
    }

    fn connect_timeout(&self) -> Duration {
        either!(Self, self, |pool| pool.connect_timeout())
    }

    async fn ready(&self) -> Result<(), NotReady> {
        either!(Self, self, |pool| pool.ready().await)
    }

    async fn migrate(&self, migrations: &Migrations) -> Result<(), PoolError> {
        either!(Self, self, |pool| pool.migrate(migrations).await)
    }

    async fn close_connections(&self) {
        either!(Self, self, |pool| pool.close_connections().await)
    }

    #[cfg(feature = "testing")]
    fn backend_of(url: &str) -> Option<Backend> {
        match &*scheme::of(url)? {
            #[cfg(feature = "sqlite")]
            "sqlite" => Some(Backend::Sqlite),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Some(Backend::Postgres),
            _ => None,
        }
    }

    fn identity(&self) -> &Identity {
        either!(Self, self, |pool| pool.identity())
    }

    fn identity_before_opening(configuration: &Figment) -> Option<Identity> {
        match &*scheme::of(&configuration.extract_inner::<String>("url").ok()?)? {
            #[cfg(feature = "sqlite")]
            "sqlite" => SqlitePool::identity_before_opening(configuration),
            _ => None,
        }
    }

    fn attachment(&self) -> &OnceLock<Attachment> {
        either!(Self, self, |pool| pool.attachment())
    }
}

#[rocket::async_trait]
impl rocket_db_pools::Pool for UrlPool {
    type Connection = UrlConnection;
    type Error = PoolError;

    async fn init(figment: &Figment) -> Result<Self, PoolError> {
        Self::connect(&figment.extract()?).await
    }

    async fn get(&self) -> Result<UrlConnection, PoolError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(pool) => rocket_db_pools::Pool::get(pool)
                .await
                .map(UrlConnection::Sqlite),
            #[cfg(feature = "postgres")]
            Self::Postgres(pool) => rocket_db_pools::Pool::get(pool)
                .await
                .map(UrlConnection::Postgres),
        }
    }

    async fn close(&self) {
        either!(Self, self, |pool| rocket_db_pools::Pool::close(pool).await)
    }
}
