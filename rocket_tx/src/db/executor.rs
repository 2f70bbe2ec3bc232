//! sqlx's trait `Executor` for the types that dereference to a connection: a query runs on `&mut tx`
//! as well as on `&mut *tx`.

use sqlx::Executor;

use super::Session;

/// A session whose backend is known at compile time. Not that of a [`UrlPool`](crate::db::UrlPool), so
/// its guards are no executors.
///
/// Guards are executors by this trait, and not by the bound that their connection is one: with such a
/// bound, the compiler does not come to an end in generic functions over `for<'c> &'c mut C: Executor<'c>`.
#[diagnostic::on_unimplemented(
    message = "a query cannot run on the guard of a `UrlPool`, because its backend is known only at run time",
    note = "use the macro `rocket_tx::with_backend!`"
)]
pub trait ExecutorSession: Session {
    /// The backend.
    type Database: sqlx::Database;
    /// The connection, borrowed.
    type Executor<'c>: Executor<'c, Database = Self::Database>;

    /// Returns the connection as an executor.
    fn executor(connection: &mut Self::Connection) -> Self::Executor<'_>;
}

/// Implements `Executor` for a type that dereferences to the connection of a session. With `if`, only
/// on a condition.
macro_rules! executor {
    (
        $(#[$attribute:meta])* $type:ty, of $session:ty, where $($parameter:ident $(: $bound:path)?),+
        $(; if $condition:path)?
    ) => {
        $(#[$attribute])*
        impl<'c, $($parameter $(: $bound)?),+> ::sqlx::Executor<'c> for &'c mut $type
        where
            $session: $crate::db::ExecutorSession,
            $($type: $condition,)?
        {
            type Database = <$session as $crate::db::ExecutorSession>::Database;

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> ::rocket::futures::stream::BoxStream<
                'e,
                ::sqlx::Result<
                    ::sqlx::Either<
                        <Self::Database as ::sqlx::Database>::QueryResult,
                        <Self::Database as ::sqlx::Database>::Row,
                    >,
                >,
            >
            where
                'c: 'e,
                E: 'q + ::sqlx::Execute<'q, Self::Database>,
            {
                <$session as $crate::db::ExecutorSession>::executor(self).fetch_many(query)
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> ::rocket::futures::future::BoxFuture<
                'e,
                ::sqlx::Result<Option<<Self::Database as ::sqlx::Database>::Row>>,
            >
            where
                'c: 'e,
                E: 'q + ::sqlx::Execute<'q, Self::Database>,
            {
                <$session as $crate::db::ExecutorSession>::executor(self).fetch_optional(query)
            }

            fn prepare_with<'e>(
                self,
                sql: ::sqlx::SqlStr,
                parameters: &'e [<Self::Database as ::sqlx::Database>::TypeInfo],
            ) -> ::rocket::futures::future::BoxFuture<
                'e,
                ::sqlx::Result<<Self::Database as ::sqlx::Database>::Statement>,
            >
            where
                'c: 'e,
            {
                <$session as $crate::db::ExecutorSession>::executor(self).prepare_with(sql, parameters)
            }

            fn describe<'e>(
                self,
                sql: ::sqlx::SqlStr,
            ) -> ::rocket::futures::future::BoxFuture<
                'e,
                ::sqlx::Result<::sqlx_core::describe::Describe<Self::Database>>,
            >
            where
                'c: 'e,
            {
                <$session as $crate::db::ExecutorSession>::executor(self).describe(sql)
            }
        }
    };
}

pub(crate) use executor;
