//! A read by a library, on a connection that no handler gets.

use std::sync::Arc;

use super::read::Read;
use crate::db::{ConnectionOf, TransactionalDatabase};
use crate::tx::failure::Error;
use crate::tx::registry::Outstanding;

/// A connection of `D` for the statements of a library that read. It is a [`Read`] that no handler
/// gets: there is no way to make a `Lookup` of a `Read`.
///
/// So the library knows all statements that have run on the connection. If they have left it as it
/// was, [`finish`](Self::finish) returns it, and its next user gets it without a check.
///
/// # Drop
///
/// If a `Lookup` is dropped, its connection is checked before its next use, as that of a `Read`.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use rocket_tx::db::SqlitePool;
/// use rocket_tx::extend::Lookup;
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx::{sqlx, Error, Outstanding};
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(SqlitePool);
///
/// async fn count(outstanding: &Arc<Outstanding>, pool: &SqlitePool) -> Result<i64, Error> {
///     let mut lookup = Lookup::<Main>::in_request(outstanding, pool).await?;
///     let sql = "SELECT count(*) FROM outbox";
///     let count = sqlx::query_scalar(sql).fetch_one(lookup.connection()).await?;
///     lookup.finish();
///     Ok(count)
/// }
/// ```
pub struct Lookup<D: TransactionalDatabase>(Read<D>);

impl<D: TransactionalDatabase> Lookup<D> {
    /// Opens a `Lookup` for the request of `outstanding`.
    ///
    /// # Errors
    ///
    /// As [`Read::in_request`].
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, nothing is left of the `Lookup`.
    pub async fn in_request(outstanding: &Arc<Outstanding>, pool: &D::Pool) -> Result<Self, Error> {
        Read::in_request(outstanding, pool).await.map(Self)
    }

    /// Returns the connection.
    pub fn connection(&mut self) -> &mut ConnectionOf<D> {
        &mut self.0
    }

    /// Returns the connection to its pool, and says that it is as it was: all its statements got all
    /// their replies, and none of them has changed it. After an error, drop the `Lookup` instead, and
    /// also if a stream of rows was not read to its end: the next user could receive the rest.
    ///
    /// The next user gets the connection without a check.
    pub fn finish(mut self) {
        self.0.mark_unchanged();
    }
}
