//! The databases of one test.

use std::fmt;
use std::ops::{Deref, DerefMut};

use rocket::{Ignite, Rocket};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::app::not_attached;
use crate::db::{
    Backend, ConnectionOf, OwnDatabases, Session, SessionOf, TransactionPool,
    TransactionalDatabase, executor,
};

/// The databases of one test. Dropping it drops the databases, while the thread is blocked.
#[must_use = "dropping it drops the databases of the test"]
pub struct Databases(OwnDatabases);

impl Databases {
    pub(super) fn new(own: OwnDatabases) -> Self {
        Self(own)
    }

    /// Returns the URL of the database `D` of this test.
    ///
    /// # Panics
    ///
    /// If the service does not attach `D`, or was not launched yet.
    pub fn url<D: TransactionalDatabase>(&self) -> String {
        let url = self.0.url_of::<D>();
        url.unwrap_or_else(|| panic!("{}", not_attached::<D>()))
    }

    /// Runs one or more statements in the database `D` and commits them, on a connection of its
    /// own.
    ///
    /// # Panics
    ///
    /// If the service does not attach `D`, or was not launched yet, or a statement fails.
    pub async fn execute<D: TransactionalDatabase>(&self, sql: &str) {
        let url = self.url::<D>();
        let executed = match self.0.backend_of::<D>() {
            #[cfg(feature = "sqlite")]
            Some(Backend::Sqlite) => execute::<sqlx::SqliteConnection>(&url, sql).await,
            #[cfg(feature = "postgres")]
            Some(Backend::Postgres) => execute::<sqlx::PgConnection>(&url, sql).await,
            None => panic!("{}", not_attached::<D>()),
        };
        if let Err(error) = executed {
            panic!("a statement in the database `{}` failed: {error}", D::NAME);
        }
    }

    pub(super) async fn close_connections(&self, rocket: &Rocket<Ignite>) {
        self.0.close_connections(rocket).await;
    }

    /// Returns why the launch failed, or an empty string if the reason is not a database.
    pub(super) fn refusals(&self) -> String {
        self.0.refusals()
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        self.0.drop_all();
    }
}

async fn execute<C: Connection>(url: &str, sql: &str) -> sqlx::Result<()>
where
    for<'c> &'c mut C: Executor<'c, Database = C::Database>,
{
    let mut connection = C::connect(url).await?;
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await?;
    connection.close().await
}

/// A connection to the database `D` that only reads. Dereferences to the connection of sqlx, or to
/// [`UrlConnection`](crate::db::UrlConnection) with a `UrlPool`. Queries run on `&mut reader`, as on a
/// [`Read`](crate::Read).
pub struct Reader<D: TransactionalDatabase>(pub(super) <D::Pool as TransactionPool>::Session);

impl<D: TransactionalDatabase> fmt::Debug for Reader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&D::NAME).finish()
    }
}

executor!(Reader<D>, of SessionOf<D>, where D: TransactionalDatabase);

impl<D: TransactionalDatabase> Deref for Reader<D> {
    type Target = ConnectionOf<D>;

    fn deref(&self) -> &Self::Target {
        self.0.connection_ref()
    }
}

impl<D: TransactionalDatabase> DerefMut for Reader<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.connection()
    }
}
