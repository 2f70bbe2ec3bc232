//! One session: how it is opened, and what happens to it when its user returns it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Postgres};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::commit_turns::CommitTurn;
use super::fate::Backend;
use super::proof::{Replies, nonce};
use super::sessions::Sessions;
use super::settings::{CleanUp, Settings};
use crate::db::error_class::is_lost;
use crate::db::{ErrorClass, TransactionId};

/// The longest time that a working server takes for statements that need no lock and no disk. A
/// session that takes longer is closed.
pub(super) const PROMPT: Duration = Duration::from_secs(2);

/// An open session, checked out or idle.
pub(super) struct Live {
    pub(super) connection: PgConnection,
    pub(super) backend: Arc<Backend>,
    pub(super) opened: Instant,
    clean_up: CleanUp,
    /// Transactions without an explicit isolation level are READ COMMITTED.
    pub(super) reads_committed: bool,
    /// A random text that comes back with every clean-up. It shows that the replies are from this
    /// session: safe code can exchange the connections of two sessions.
    secret: String,
}

impl Live {
    /// Connects, and makes sure that the session has its settings.
    pub(super) async fn open(settings: &Settings) -> sqlx::Result<Self> {
        let mut connection = settings.session_options().connect().await?;
        let secret = nonce();
        let replies = Replies::to(&mut connection, settings.opening(&secret)).await;
        let (pid, started, holds) = (replies.text(0), replies.text(1), replies.text(2));
        let (Some(pid), Some(started), Some(holds)) = (pid, started, holds) else {
            return Err(replies.into_error());
        };
        if holds != "true" {
            return Err(sqlx::Error::Configuration(
                "the settings of the session did not reach the server; configure the pooler in \
                 front of the server to pass them on"
                    .into(),
            ));
        }
        let acts_as_role = replies.text(3) == Some("true");
        let reads_committed = replies.text(4) == Some("true");
        let backend = Backend::new(pid.to_owned(), started.to_owned(), &mut connection).await;
        Ok(Self {
            connection,
            backend: Arc::new(backend),
            opened: Instant::now(),
            clean_up: settings.clean_up(acts_as_role),
            reads_committed,
            secret,
        })
    }

    /// Cleans the session after use: ends a transaction that is still open, resets the settings if
    /// that is configured, and checks that the replies match the statements.
    ///
    /// Also reads the replies that the user of the session left unread.
    pub(super) async fn clean(&mut self) -> Cleaned {
        /// BEGIN comes first: outside a transaction, each ROLLBACK alone would write a warning to
        /// the server's log.
        const END: [&str; 2] = ["BEGIN", "ROLLBACK"];

        // Our own transactions have depth 1. At a greater depth, the user left a savepoint open.
        if depth(&self.connection) > 1 {
            return Cleaned::Failed;
        }
        let nonce = nonce();
        let (sql, statements) = self.clean_up.after(&END, &nonce);
        let cleaning = Replies::to(&mut self.connection, sql);
        let Ok(replies) = timeout(PROMPT, cleaning).await else {
            return Cleaned::Silent;
        };
        if !replies.prove(statements, &nonce) || replies.text(SECRET) != Some(&self.secret) {
            return Cleaned::Failed;
        }
        forget_types(&mut self.connection).await;
        Cleaned::Done
    }
}

/// The result of [cleaning](Live::clean) a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleaned {
    /// The session may be checked out again.
    Done,
    /// The session must be closed.
    Failed,
    /// The session must be closed, and the server may still be running a statement on it.
    Silent,
}

/// Clears the type names that the driver has cached, on a session that caches no statements. With
/// the next `search_path` a name may mean another type. Sends nothing.
async fn forget_types(connection: &mut PgConnection) {
    if connection.cached_statements_size() == 0
        && let Err(error) = connection.clear_cached_statements().await
    {
        tracing::debug!(%error, "could not clear the type names that the driver has cached");
    }
}

/// The column of the clean-up's row that holds the session's secret.
const SECRET: usize = 1;

/// Returns the transaction depth that sqlx has counted: 1 for a transaction, and 1 more for each
/// savepoint that a handler began in it through sqlx.
pub(super) fn depth(connection: &PgConnection) -> usize {
    <Postgres as sqlx::Database>::TransactionManager::get_transaction_depth(connection)
}

/// How many replies a session may be behind its statements. If it is further behind, the search for
/// late replies stops.
const MAX_BEHIND: usize = 4;

/// The result of the statements that end a transaction.
pub(super) enum EndResult {
    /// The replies show that the server has executed all statements.
    Proved,
    /// The session replies, but its replies do not show that. Holds the first replies that were
    /// read.
    NotProved(Replies),
    /// The session has ended. Holds the replies that came before.
    Lost(Replies),
}

/// Returns whether this error ends the search for late replies: the session is lost, or every later
/// statement fails because the transaction is aborted.
fn is_final(error: &sqlx::Error) -> bool {
    is_lost(error) || ErrorClass::of(error) == ErrorClass::Aborted
}

/// What happens to a session when its user returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OnReturn {
    /// The next user gets the session at once. It has just passed the clean-up, or it ran only
    /// statements of this library and all of them got replies. A later use of the connection makes
    /// this a `Check`.
    Reuse,
    /// A separate task cleans the session before another user gets it.
    Check,
    /// The session is closed.
    Close,
}

/// A checked-out session. Dropping it returns it to its pool.
pub struct PostgresSession {
    /// Empty only in `Drop`.
    live: Option<Live>,
    pub(super) is_new: bool,
    on_return: OnReturn,
    /// What is known of its transaction, while one is open.
    pub(super) transaction: OpenTransaction,
    /// Held from the end of the work until COMMIT.
    pub(super) commit_turn: Option<CommitTurn>,
    pub(super) owner: Option<TransactionId>,
    slot: Option<Slot>,
}

/// What is known of the open transaction of a session.
#[derive(Clone, Default)]
pub(super) struct OpenTransaction {
    /// Whether the transaction may write.
    pub(super) writes: bool,
    /// Whether COMMIT may report a conflict that no statement has reported.
    pub(super) may_be_serializable: bool,
    /// It was found to have written nothing.
    pub(super) has_written_nothing: bool,
    /// COMMIT was refused: the transaction has ended, and the server has rolled it back.
    pub(super) is_refused: bool,
    /// The id of the transaction, if known. With the id the server can be queried how the
    /// transaction ended.
    pub(super) id: Option<Arc<str>>,
    /// The `application_name` that the session has only during this transaction. It identifies the
    /// transaction while no id is known.
    pub(super) mark: Option<Arc<str>>,
    pub(super) protection: Protection,
}

/// Why the handler itself cannot have committed a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Protection {
    /// Nothing prevents it.
    #[default]
    None,
    /// The server obeys no COMMIT but ours.
    Sealed,
    /// The proof held after the last statement of the handler.
    Proved,
}

impl OpenTransaction {
    /// Returns whether the handler may have committed some of the changes: the transaction may
    /// write, is not sealed, and the proof has not been checked.
    pub(super) fn may_be_committed(&self) -> bool {
        self.writes && self.protection == Protection::None
    }
}

/// A slot in a pool. While a session holds it, no other session may be opened in its place.
pub(super) struct Slot {
    pub(super) sessions: Sessions,
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _checked_out: TaskTrackerToken,
}

const CHECKED_OUT: &str = "a checked-out session has its connection and its slot";

impl PostgresSession {
    /// Creates a checked-out session. When it is returned, it is handled as [`OnReturn::Check`],
    /// unless its user calls [`set_on_return`](Self::set_on_return).
    pub(super) fn new(live: Live, is_new: bool, slot: Slot) -> Self {
        Self {
            live: Some(live),
            is_new,
            on_return: OnReturn::Check,
            transaction: OpenTransaction::default(),
            commit_turn: None,
            owner: None,
            slot: Some(slot),
        }
    }

    /// Sets what happens when the session is returned. [`OnReturn::Close`] is final: later calls
    /// change nothing.
    pub fn set_on_return(&mut self, on_return: OnReturn) {
        if self.on_return != OnReturn::Close {
            self.on_return = on_return;
        }
    }

    /// Returns the pool that the session belongs to.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.slot.as_ref().expect(CHECKED_OUT).sessions
    }

    pub(super) fn live(&mut self) -> &mut Live {
        self.live.as_mut().expect(CHECKED_OUT)
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.live.as_ref().expect(CHECKED_OUT).backend
    }

    /// Runs `before`, which must end the transaction, and then the clean-up.
    pub(super) async fn run_final(&mut self, before: &[&str]) -> EndResult {
        let Live {
            connection,
            clean_up,
            secret,
            ..
        } = self.live();
        let nonce = nonce();
        let (sql, statements) = clean_up.after(before, &nonce);
        let is_proof = |replies: &Replies| {
            replies.prove(statements, &nonce) && replies.text(SECRET) == Some(&**secret)
        };
        let replies = Replies::to(connection, sql).await;
        if is_proof(&replies) {
            forget_types(connection).await;
            // Our own transactions have depth 1. At a greater depth, the handler left a savepoint
            // open.
            self.set_on_return(match depth(self) {
                0 | 1 => OnReturn::Reuse,
                _ => OnReturn::Close,
            });
            return EndResult::Proved;
        }
        if replies.error.as_ref().is_some_and(is_lost) {
            return EndResult::Lost(replies);
        }
        // These may be late replies to earlier statements. The replies to our statements may still
        // come.
        for _ in 0..MAX_BEHIND {
            let nonce = self::nonce();
            let late = Replies::to(connection, format!("SELECT '{nonce}'")).await;
            if is_proof(&late) {
                self.set_on_return(OnReturn::Close);
                return EndResult::Proved;
            }
            if late.prove(1, &nonce) || late.error.as_ref().is_some_and(is_final) {
                break;
            }
        }
        EndResult::NotProved(replies)
    }
}

impl Deref for PostgresSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.live.as_ref().expect(CHECKED_OUT).connection
    }
}

impl DerefMut for PostgresSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        // The user of the connection may change the session.
        if self.on_return == OnReturn::Reuse {
            self.on_return = OnReturn::Check;
        }
        &mut self.live().connection
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        let (Some(mut live), Some(slot)) = (self.live.take(), self.slot.take()) else {
            return;
        };
        match self.on_return {
            OnReturn::Reuse => slot.sessions.put(live),
            // Dropping the socket ends the session, and the server rolls back. The slot is freed
            // only after that. Otherwise one session too many would be open for a moment.
            OnReturn::Close => drop(live),
            OnReturn::Check => {
                // Without a runtime the process is about to end.
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(async move {
                        match live.clean().await {
                            Cleaned::Done => slot.sessions.put(live),
                            Cleaned::Failed => drop(live),
                            // The slot is freed when the server process is gone, or after the limit
                            // of `stop`.
                            Cleaned::Silent => live.backend.stop(&slot.sessions).await,
                        }
                        drop(slot);
                    });
                }
            }
        }
    }
}

/// Closes a session whose server may be gone.
pub(super) async fn close_quietly(live: Live) {
    // The result does not matter: the server also detects the end of the socket.
    let _ = timeout(PROMPT, live.connection.close()).await;
}
