//! The connections of a SQLite file that only read.
//!
//! sqlx's pool lends them. What comes back is looked at in a task of the pool's own, off the path of
//! the request that had it and of the next one: a statement whose caller has gone is finished there,
//! and a connection that is not as it was made is closed.

use std::cmp::Ordering as Order;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool};
use sqlx::{Connection, Sqlite};
use tokio::time::timeout;

use super::watch::{SELDOM, state};
use crate::db::{Config, WaitPolicy};

/// BEGIN fails where one that a request has sent is still open, whatever sqlx counts. It stands
/// last: an answer that comes early would wake the task once more.
const STATE: &str = concat!(
    "SELECT ",
    state!(),
    " || ('' = ':' COLLATE rocket_tx_touched); BEGIN; ROLLBACK"
);

/// Opens the pool, and as many connections as it is to keep.
pub(super) async fn connect(
    config: &Config,
    options: SqliteConnectOptions,
) -> sqlx::Result<SqlitePool> {
    let made = Arc::new(OnceLock::new());
    let looked_at = Arc::clone(&made);
    PoolOptions::<Sqlite>::new()
        .acquire_timeout(config.connect_timeout.0)
        .idle_timeout(config.idle_timeout.map(|timeout| timeout.0))
        .max_lifetime(None)
        .max_connections(config.max_connections.max(1))
        .min_connections(config.min_connections)
        // The other end is a thread of this process: a ping proves nothing and costs a hop.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let made = Arc::clone(&made);
            Box::pin(async move {
                install(connection).await?;
                let state = state_of(connection).await?;
                made.get_or_init(|| state);
                Ok(())
            })
        })
        .after_release(move |connection, _| {
            let made = looked_at.get().cloned();
            Box::pin(async move {
                let found = state_of(connection).await?;
                let is_as_made = made.is_none_or(|made| made == found);
                if !is_as_made {
                    tracing::debug!("a request had changed a reading connection; closing it");
                }
                Ok(is_as_made && !connection.is_in_transaction())
            })
        })
        // `query_only` holds even where the process may write the file; `read_only` would keep a
        // reader from making the shared-memory file after the last writer left.
        .connect_with(options.pragma("query_only", "ON"))
        .await
}

/// Takes a reader; with [`WaitPolicy::FAIL_FAST`] one that is idle, or a new one if there may be more.
///
/// What waits is boxed: the future of a handler that need not wait stays small.
pub(super) async fn acquire(
    readers: &SqlitePool,
    wait: WaitPolicy,
) -> sqlx::Result<PoolConnection<Sqlite>> {
    /// A new connection takes a moment, but needs nothing that another request may hold.
    const CONNECTING: Duration = Duration::from_secs(1);

    // Never past those who wait: the pool is fair.
    if let Some(connection) = readers.try_acquire() {
        return Ok(connection);
    }
    if wait.queues() {
        return Box::pin(readers.acquire()).await;
    }
    if readers.size() < readers.options().get_max_connections() {
        let connected = Box::pin(timeout(CONNECTING, readers.acquire())).await;
        return connected.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    }
    Err(sqlx::Error::PoolTimedOut)
}

/// The text of [`STATE`]. One hop.
async fn state_of(connection: &mut SqliteConnection) -> sqlx::Result<String> {
    // All rows of all statements: one that is left out would not be run.
    let found: Vec<String> = sqlx::query_scalar(STATE).fetch_all(connection).await?;
    Ok(found.concat())
}

/// Is told when somebody sets another callback in the place of the one that it belongs to.
struct Tripwire(Arc<AtomicBool>);

impl Drop for Tripwire {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Refuses every commit of a write: a request could switch `query_only` off. And has the connection
/// say by a collation whether a callback was set on it.
async fn install(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let is_touched = Arc::new(AtomicBool::new(false));
    let mut handle = connection.lock_handle().await?;
    let tripwire = Tripwire(Arc::clone(&is_touched));
    handle.set_commit_hook(move || {
        let _belongs_to_it = &tripwire;
        false
    });
    let tripwire = Tripwire(Arc::clone(&is_touched));
    handle.set_rollback_hook(move || {
        let _belongs_to_it = &tripwire;
    });
    let tripwire = Tripwire(Arc::clone(&is_touched));
    handle.set_progress_handler(SELDOM, move || {
        let _belongs_to_it = &tripwire;
        true
    });
    handle.create_collation("rocket_tx_touched", move |one, other| {
        match is_touched.load(Ordering::SeqCst) {
            true => Order::Equal,
            false => one.cmp(other),
        }
    })
}
