//! The connections of a SQLite file that only read.
//!
//! They are in a pool of sqlx. A returned connection is checked in a separate task of the pool,
//! which delays neither the request that had the connection nor the next one. An abandoned
//! statement is finished there, and a connection that was changed since it was opened is closed. The
//! check is left out for a connection on which only statements of this library have run.

use std::cmp::Ordering as Order;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool};
use sqlx::{Connection, Sqlite};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::watch::{DropFlag, PROGRESS_INTERVAL, state};
use crate::db::{Config, WaitPolicy};

/// Reads the state of the connection as a text, and then sends BEGIN and ROLLBACK. BEGIN fails if a
/// request has begun a transaction by SQL that is still open; sqlx does not count such a
/// transaction. BEGIN comes after the SELECT, because a reply before it would wake the task once
/// more.
const STATE: &str = concat!(
    "SELECT ",
    state!(),
    " || ('' = ':' COLLATE rocket_tx_touched); BEGIN; ROLLBACK"
);

tokio::task_local! {
    /// Set in the task that returns a connection which need not be checked.
    static UNCHANGED: ();
}

/// A checked-out reader. Dropping it returns it to the pool.
pub(super) struct Reader {
    connection: PoolConnection<Sqlite>,
    /// No statement has changed the connection since it was checked out, and all statements got all
    /// their replies.
    is_unchanged: bool,
}

impl Reader {
    /// Says that the connection need not be checked, unless it is used again.
    pub(super) fn mark_unchanged(&mut self) {
        self.is_unchanged = true;
    }

    pub(super) fn close_on_drop(&mut self) {
        self.is_unchanged = false;
        self.connection.close_on_drop();
    }
}

impl Deref for Reader {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.is_unchanged = false;
        &mut self.connection
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Otherwise the pool returns the connection when that is dropped. The pool does the same in a
        // task, but not in one of ours.
        if self.is_unchanged
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(UNCHANGED.scope((), self.connection.return_to_pool()));
        }
    }
}

/// Opens the pool, with `min_connections` connections.
pub(super) async fn connect(
    config: &Config,
    options: SqliteConnectOptions,
) -> sqlx::Result<SqlitePool> {
    let initial = Arc::new(OnceLock::new());
    let expected = Arc::clone(&initial);
    PoolOptions::<Sqlite>::new()
        .acquire_timeout(config.connect_timeout.0)
        .idle_timeout(config.idle_timeout.map(|timeout| timeout.0))
        .max_lifetime(None)
        .max_connections(config.max_connections.max(1))
        .min_connections(config.min_connections)
        // The other end is a thread of this process. A ping would prove nothing, and it would cost
        // a message to that thread and its reply.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let initial = Arc::clone(&initial);
            Box::pin(async move {
                install(connection).await?;
                let state = state_of(connection).await?;
                initial.get_or_init(|| state);
                Ok(())
            })
        })
        .after_release(move |connection, _| {
            let expected = expected.get().cloned();
            Box::pin(async move {
                if UNCHANGED.try_with(|()| ()).is_ok() {
                    return Ok(true);
                }
                let found = state_of(connection).await?;
                let is_unchanged = expected.is_none_or(|expected| expected == found);
                if !is_unchanged {
                    tracing::debug!("a request had changed a reading connection; closing it");
                }
                Ok(is_unchanged && !connection.is_in_transaction())
            })
        })
        // `query_only` forbids writes even if the process may write the file. `read_only` would
        // keep a reader from creating the shared-memory file after the last writer was closed.
        .connect_with(options.pragma("query_only", "ON"))
        .await
}

/// Checks out a reader. With [`WaitPolicy::FAIL_FAST`], takes an idle reader, or a new one if the
/// pool is not full.
///
/// The futures that wait are boxed. So the future of a handler that need not wait stays small.
pub(super) async fn acquire(readers: &SqlitePool, wait: WaitPolicy) -> sqlx::Result<Reader> {
    let connection = acquire_from(readers, wait).await?;
    Ok(Reader {
        connection,
        is_unchanged: false,
    })
}

async fn acquire_from(
    readers: &SqlitePool,
    wait: WaitPolicy,
) -> sqlx::Result<PoolConnection<Sqlite>> {
    /// The limit for a new connection. It takes a moment, but it does not depend on another
    /// request.
    const CONNECTING: Duration = Duration::from_secs(1);

    // The pool is fair: this does not overtake waiting tasks.
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

/// Returns the text of [`STATE`]. One hop (a message to the connection's thread and its reply).
async fn state_of(connection: &mut SqliteConnection) -> sqlx::Result<String> {
    // Fetch all rows of all statements: a statement whose rows are not fetched would not run.
    let found: Vec<String> = sqlx::query_scalar(STATE).fetch_all(connection).await?;
    Ok(found.concat())
}

/// Installs a commit hook that refuses every commit of a write, because a request could switch
/// `query_only` off. Also installs a collation that changes the text of [`STATE`] if a callback of
/// ours was replaced.
async fn install(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let is_touched = Arc::new(AtomicBool::new(false));
    let mut handle = connection.lock_handle().await?;
    let flag = DropFlag(Arc::clone(&is_touched));
    handle.set_commit_hook(move || {
        let _owned = &flag;
        false
    });
    let flag = DropFlag(Arc::clone(&is_touched));
    handle.set_rollback_hook(move || {
        let _owned = &flag;
    });
    let flag = DropFlag(Arc::clone(&is_touched));
    handle.set_progress_handler(PROGRESS_INTERVAL, move || {
        let _owned = &flag;
        true
    });
    handle.create_collation("rocket_tx_touched", move |one, other| {
        match is_touched.load(Ordering::SeqCst) {
            true => Order::Equal,
            false => one.cmp(other),
        }
    })
}
