//! The rows of the table `idempotency_keys`. The statements are in `sql/`.

use std::future::Future;
use std::time::Duration;

use rocket_db_pools::Database;
use rocket_tx::db::{Session, TransactionPool};
use sqlx::FromRow;

use crate::hash::{Fingerprint, Scope};

/// A database that can hold idempotency keys: every database of `rocket_tx`.
pub trait KeyDatabase: Database<Pool: KeyPool> {}

impl<D> KeyDatabase for D where D: Database<Pool: KeyPool> {}

/// A pool whose database can hold idempotency keys: [`SqlitePool`](rocket_tx::db::SqlitePool),
/// [`PostgresPool`](rocket_tx::db::PostgresPool) or [`UrlPool`](rocket_tx::db::UrlPool).
pub trait KeyPool: TransactionPool<Session: Session<Connection: KeyRows>> {}

impl<P> KeyPool for P where P: TransactionPool<Session: Session<Connection: KeyRows>> {}

/// The row of a key that a request has committed.
#[doc(hidden)]
#[derive(Debug, FromRow)]
pub struct Row {
    pub(crate) fingerprint: Vec<u8>,
    /// `None` if the request committed without saving a response.
    pub(crate) status: Option<i32>,
    pub(crate) headers: Option<String>,
    pub(crate) body: Option<Vec<u8>>,
}

/// A response as it is stored.
#[doc(hidden)]
#[derive(Debug)]
pub struct Saved {
    pub(crate) status: i32,
    pub(crate) headers: String,
    pub(crate) body: Option<Vec<u8>>,
}

/// The result of an attempt to claim a key.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The key belongs to this transaction now.
    Claimed,
    /// A transaction that has not ended has claimed the key.
    InFlight,
    /// A committed row has the key.
    Taken,
}

/// Seals [`KeyRows`].
pub(crate) trait Sealed {}

/// A connection to the table of keys.
///
/// Implemented for the connections of `rocket_tx`, and sealed: no other crate can implement it.
// Other crates cannot implement a private bound.
#[allow(private_bounds)]
pub trait KeyRows: Sealed + Send {
    #[doc(hidden)]
    fn claim(
        &mut self,
        scope: &Scope,
        fingerprint: &Fingerprint,
        expiry: Duration,
    ) -> impl Future<Output = sqlx::Result<Attempt>> + Send;

    #[doc(hidden)]
    fn find(&mut self, scope: &Scope) -> impl Future<Output = sqlx::Result<Option<Row>>> + Send;

    /// Stores the response. Returns `false` if the row of the key does not exist.
    #[doc(hidden)]
    fn save(
        &mut self,
        scope: &Scope,
        saved: &Saved,
    ) -> impl Future<Output = sqlx::Result<bool>> + Send;

    /// Deletes up to `limit` expired rows. Returns how many it has deleted.
    #[doc(hidden)]
    fn sweep(&mut self, limit: u32) -> impl Future<Output = sqlx::Result<u64>> + Send;
}

/// Returns the statement of a file without its leading comment. `pg_stat_activity` and logs cut off
/// long texts, so a leading comment would hide the statement.
fn statement(mut file: &'static str) -> &'static str {
    while file.starts_with("--") {
        file = file.split_once('\n').map_or("", |(_, rest)| rest);
    }
    file
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

macro_rules! rows {
    ($connection:ty, $folder:literal, |$claim:ident, $scope:ident| $bind_lock:expr) => {
        impl Sealed for $connection {}

        impl KeyRows for $connection {
            async fn claim(
                &mut self,
                $scope: &Scope,
                fingerprint: &Fingerprint,
                expiry: Duration,
            ) -> sqlx::Result<Attempt> {
                const CLAIM: &str = include_str!(concat!("sql/", $folder, "/claim.sql"));

                let $claim = sqlx::query_as(statement(CLAIM))
                    .bind($scope.as_bytes())
                    .bind(fingerprint.as_bytes())
                    .bind(millis(expiry));
                let attempt: Option<(bool, bool)> = $bind_lock.fetch_optional(self).await?;
                Ok(match attempt {
                    Some((_, true)) => Attempt::Claimed,
                    Some((false, _)) => Attempt::InFlight,
                    Some(_) | None => Attempt::Taken,
                })
            }

            async fn find(&mut self, scope: &Scope) -> sqlx::Result<Option<Row>> {
                const FIND: &str = include_str!(concat!("sql/", $folder, "/find.sql"));

                let find = sqlx::query_as(statement(FIND)).bind(scope.as_bytes());
                find.fetch_optional(self).await
            }

            async fn save(&mut self, scope: &Scope, saved: &Saved) -> sqlx::Result<bool> {
                let save = sqlx::query(statement(include_str!("sql/save.sql")))
                    .bind(scope.as_bytes())
                    .bind(saved.status)
                    .bind(&saved.headers)
                    .bind(&saved.body);
                Ok(save.execute(self).await?.rows_affected() == 1)
            }

            async fn sweep(&mut self, limit: u32) -> sqlx::Result<u64> {
                const SWEEP: &str = include_str!(concat!("sql/", $folder, "/sweep.sql"));

                let sweep = sqlx::query(statement(SWEEP)).bind(i64::from(limit));
                Ok(sweep.execute(self).await?.rows_affected())
            }
        }
    };
}

#[cfg(sqlite)]
rows!(sqlx::SqliteConnection, "sqlite", |claim, _scope| claim);

#[cfg(postgres)]
rows!(sqlx::PgConnection, "postgres", |claim, scope| claim
    .bind(scope.lock()));
