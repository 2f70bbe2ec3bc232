//! One session: how it is opened, and what becomes of it when its user gives it back.

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

use super::fate::Backend;
use super::proof::{Answers, nonce};
use super::sessions::Sessions;
use super::settings::{CleanUp, Settings};
use crate::db::error_class::is_lost;
use crate::db::{ErrorClass, TransactionId};

/// How long a living server takes at most for what needs no lock and no disk. A session that takes
/// longer is closed.
pub(super) const PROMPT: Duration = Duration::from_secs(2);

/// A session that is open, whoever has it.
pub(super) struct Live {
    pub(super) connection: PgConnection,
    pub(super) backend: Arc<Backend>,
    pub(super) opened: Instant,
    clean_up: CleanUp,
    /// Transactions that name no isolation are READ COMMITTED.
    pub(super) reads_committed: bool,
    /// Comes back with each proof: safe code can exchange the connections of two sessions.
    secret: String,
}

impl Live {
    /// Connects, and sees to it that the session is set as it should be.
    pub(super) async fn open(settings: &Settings) -> sqlx::Result<Self> {
        let mut connection = settings.session_options().connect().await?;
        let secret = nonce();
        let answers = Answers::to(&mut connection, settings.opening(&secret)).await;
        let (pid, started, holds) = (answers.text(0), answers.text(1), answers.text(2));
        let (Some(pid), Some(started), Some(holds)) = (pid, started, holds) else {
            return Err(answers.into_error());
        };
        if holds != "true" {
            return Err(sqlx::Error::Configuration(
                "the settings of the session were dropped on the way to the server; \
                 a pooler between must pass them on"
                    .into(),
            ));
        }
        let acts = answers.text(3) == Some("true");
        let reads_committed = answers.text(4) == Some("true");
        let backend = Backend::new(pid.to_owned(), started.to_owned(), &mut connection).await;
        Ok(Self {
            connection,
            backend: Arc::new(backend),
            opened: Instant::now(),
            clean_up: settings.clean_up(acts),
            reads_committed,
            secret,
        })
    }

    /// Ends whatever transaction is open, takes back what the session was set to, and has it prove
    /// that it answers.
    ///
    /// Reads what is left of an answer that its user did not wait for.
    pub(super) async fn clean(&mut self) -> Cleaned {
        /// BEGIN first: outside of a transaction ROLLBACK alone would be a warning in the server's
        /// log each time.
        const END: [&str; 2] = ["BEGIN", "ROLLBACK"];

        // Deeper in transactions than ours, its user has forgotten a savepoint.
        if depth(&self.connection) > 1 {
            return Cleaned::Failed;
        }
        let nonce = nonce();
        let (sql, statements) = self.clean_up.after(&END, &nonce);
        let asked = Answers::to(&mut self.connection, sql);
        let Ok(answers) = timeout(PROMPT, asked).await else {
            return Cleaned::Silent;
        };
        if !answers.prove(statements, &nonce) || answers.text(SECRET) != Some(&self.secret) {
            return Cleaned::Failed;
        }
        forget_types(&mut self.connection).await;
        Cleaned::Done
    }
}

/// What came of [cleaning](Live::clean) a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleaned {
    /// The next user may have it.
    Done,
    /// Nobody may use it any more.
    Failed,
    /// The same, and the server may be at a statement still.
    Silent,
}

/// On a session that keeps no statements, the driver forgets what it took names of types for: by the
/// next `search_path` they may be others. Nothing is sent.
async fn forget_types(connection: &mut PgConnection) {
    if connection.cached_statements_size() == 0
        && let Err(error) = connection.clear_cached_statements().await
    {
        tracing::debug!(%error, "names of types are kept");
    }
}

/// The column of a proof that holds the session's secret.
const SECRET: usize = 1;

/// How deep in transactions sqlx counts it.
pub(super) fn depth(connection: &PgConnection) -> usize {
    <Postgres as sqlx::Database>::TransactionManager::get_transaction_depth(connection)
}

/// How many answers a session may be behind, and still be understood.
const MOST_BEHIND: usize = 4;

/// What came of the statements that end a transaction.
pub(super) enum Last {
    /// They were obeyed, each of them.
    Proved,
    /// The session answers, but not that: the first answers that came.
    NotProved(Answers),
    /// The session has ended.
    Lost(Answers),
}

/// No later answer says more.
fn is_final(error: &sqlx::Error) -> bool {
    is_lost(error) || ErrorClass::of(error) == ErrorClass::Aborted
}

/// What becomes of a session when it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnReturn {
    /// It has just proved itself, or ran statements of ours alone, and all were answered: the next
    /// one has it at once.
    Reuse,
    /// It proves itself in a task of its own before anybody else gets it.
    Check,
    /// It is closed.
    Close,
}

/// A session that is lent. Dropping it gives it back.
pub struct PostgresSession {
    /// Empty only in `Drop`.
    live: Option<Live>,
    pub(super) is_new: bool,
    on_return: OnReturn,
    /// What its transaction is, while it is at one.
    pub(super) transaction: OpenTransaction,
    pub(super) owner: Option<TransactionId>,
    place: Option<Place>,
}

/// What is known of the transaction that a session is at.
#[derive(Clone, Default)]
pub(super) struct OpenTransaction {
    /// It may write.
    pub(super) writes: bool,
    /// COMMIT was refused: it is over, and the server has rolled it back.
    pub(super) is_refused: bool,
    /// Its id, where that is known; with it, the server can be asked what became of it.
    pub(super) id: Option<Arc<str>>,
    /// The name of its session in the server's list, where it has no id yet.
    pub(super) mark: Option<Arc<str>>,
    pub(super) protection: Protection,
}

/// Why no handler can have committed a transaction by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Protection {
    /// It can have.
    #[default]
    None,
    /// The server obeys no COMMIT but ours.
    Sealed,
    /// It stood after the last statement of its handler.
    Proved,
}

impl OpenTransaction {
    /// A handler may have committed something of it, and nobody was asked.
    pub(super) fn is_doubtful(&self) -> bool {
        self.writes && self.protection == Protection::None
    }
}

/// A place among the sessions of a pool: while it is held, another may not be opened.
pub(super) struct Place {
    pub(super) sessions: Sessions,
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _checked_out: TaskTrackerToken,
}

const CHECKED_OUT: &str = "a session is there for as long as it is lent";

impl PostgresSession {
    /// Whatever its user does not say more about is checked when it comes back.
    pub(super) fn new(live: Live, is_new: bool, place: Place) -> Self {
        Self {
            live: Some(live),
            is_new,
            on_return: OnReturn::Check,
            transaction: OpenTransaction::default(),
            owner: None,
            place: Some(place),
        }
    }

    /// What becomes of it when it comes back; but what is to be closed stays so.
    pub fn set_on_return(&mut self, on_return: OnReturn) {
        if self.on_return != OnReturn::Close {
            self.on_return = on_return;
        }
    }

    /// Those that it is one of.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.place.as_ref().expect(CHECKED_OUT).sessions
    }

    pub(super) fn live(&mut self) -> &mut Live {
        self.live.as_mut().expect(CHECKED_OUT)
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.live.as_ref().expect(CHECKED_OUT).backend
    }

    /// Runs `before`, which must end the transaction, and what cleans up after it.
    pub(super) async fn run_last(&mut self, before: &[&str]) -> Last {
        let Live {
            connection,
            clean_up,
            secret,
            ..
        } = self.live();
        let nonce = nonce();
        let (sql, statements) = clean_up.after(before, &nonce);
        let is_proof = |answers: &Answers| {
            answers.prove(statements, &nonce) && answers.text(SECRET) == Some(&**secret)
        };
        let answers = Answers::to(connection, sql).await;
        if is_proof(&answers) {
            forget_types(connection).await;
            // Deeper in transactions than ours, a handler has forgotten a savepoint.
            self.set_on_return(match depth(self) {
                0 | 1 => OnReturn::Reuse,
                _ => OnReturn::Close,
            });
            return Last::Proved;
        }
        if answers.error.as_ref().is_some_and(is_lost) {
            return Last::Lost(answers);
        }
        // These may be the answers to something else, and those to this may come later.
        for _ in 0..MOST_BEHIND {
            let nonce = self::nonce();
            let late = Answers::to(connection, format!("SELECT '{nonce}'")).await;
            if is_proof(&late) {
                self.set_on_return(OnReturn::Close);
                return Last::Proved;
            }
            if late.prove(1, &nonce) || late.error.as_ref().is_some_and(is_final) {
                break;
            }
        }
        Last::NotProved(answers)
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
        &mut self.live().connection
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        let (Some(mut live), Some(place)) = (self.live.take(), self.place.take()) else {
            return;
        };
        match self.on_return {
            OnReturn::Reuse => place.sessions.put(live),
            // Dropping the socket ends the session: the server rolls back. Its place is free only
            // then, or one more than there may be would be open for a moment.
            OnReturn::Close => drop(live),
            OnReturn::Check => {
                // Without a runtime the process ends.
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(async move {
                        match live.clean().await {
                            Cleaned::Done => place.sessions.put(live),
                            Cleaned::Failed => drop(live),
                            // Its place is another's only when its statement is over.
                            Cleaned::Silent => live.backend.stop(&place.sessions).await,
                        }
                        drop(place);
                    });
                }
            }
        }
    }
}

/// Says goodbye to a server that may not be there any more.
pub(super) async fn say_goodbye(live: Live) {
    // Closing is a courtesy: the server would notice the end of the socket too.
    let _ = timeout(PROMPT, live.connection.close()).await;
}
