//! An open transaction that owns its connection.
//!
//! sqlx's own `Transaction` can commit and roll back, but it cannot tell whether a COMMIT would be
//! obeyed, nor close a connection that cannot be rolled back. Both are what settlement is made of.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Durability, Ended, Ending};

/// How strictly a transaction is isolated from others.
///
/// Ordered: a later variant promises all that an earlier one does. SQLite has only the last: its
/// transactions are serializable, whatever is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    /// What the server is set to: READ COMMITTED, unless somebody changed it.
    Default,
    /// Postgres's REPEATABLE READ: one snapshot for the whole transaction.
    RepeatableRead,
    /// SERIALIZABLE: as if transactions ran one after the other.
    Serializable,
}

/// Whether a transaction may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Reads only; a write fails at the database.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// How long to wait for a connection, and for a lock of another process.
///
/// ```
/// use std::time::Duration;
/// use rocket_tx::db::WaitPolicy;
///
/// let policy = WaitPolicy::QUEUE.busy_timeout(Duration::from_millis(50));
/// # assert_ne!(policy, WaitPolicy::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitPolicy {
    queues: bool,
    busy_timeout: Option<Duration>,
}

impl WaitPolicy {
    /// Queue for a connection, `connect_timeout` at most. The default.
    pub const QUEUE: Self = Self {
        queues: true,
        busy_timeout: None,
    };

    /// Fail at once if no connection is free, or if another process has locked the SQLite file: for
    /// a caller that holds something for which others may be waiting.
    pub const FAIL_FAST: Self = Self {
        queues: false,
        busy_timeout: Some(Duration::ZERO),
    };

    /// Wait `limit` at most for a lock of another process, instead of the database's `busy_timeout`.
    /// While one request waits for it, no other of this process can write. SQLite only.
    pub const fn busy_timeout(self, limit: Duration) -> Self {
        Self {
            busy_timeout: Some(limit),
            ..self
        }
    }

    /// Whether it queues for a connection.
    pub(crate) fn queues(self) -> bool {
        self.queues
    }

    /// The limit for a lock of another process. `usual` is what the database is configured with.
    #[cfg(feature = "sqlite")]
    pub(crate) fn busy_timeout_or(self, usual: Duration) -> Duration {
        self.busy_timeout.unwrap_or(usual)
    }
}

impl Default for WaitPolicy {
    fn default() -> Self {
        Self::QUEUE
    }
}

/// How a transaction is to begin.
#[derive(Debug, Clone, Copy)]
pub struct BeginOptions {
    /// Isolation from other transactions.
    pub isolation: Isolation,
    /// Whether it may write.
    pub access: Access,
    /// How long to wait for a connection, and for a lock of another process.
    pub wait: WaitPolicy,
}

/// Why a transaction cannot be committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// An earlier statement failed, its error was swallowed, and the database has given the
    /// transaction up: Postgres would answer COMMIT with ROLLBACK.
    #[error("the transaction was already aborted by a failed statement")]
    Aborted,

    /// The transaction that was begun is over: the handler sent COMMIT or ROLLBACK itself, or
    /// SQLite rolled back by itself.
    #[error("the transaction had already ended before it was settled")]
    Ended {
        /// The backend made sure that nothing of it stays. SQLite's commit hook does; Postgres
        /// lets a handler roll back, and go on.
        undone: bool,
    },

    /// A deferred constraint does not hold, and COMMIT would be refused. SQLite does not say which;
    /// Postgres names it in [`Refused`](Self::Refused).
    #[error("a deferred foreign key is broken")]
    ConstraintBroken,

    /// The database refused: nothing was committed.
    #[error("the database refused: {0}")]
    Refused(#[source] sqlx::Error),

    /// The connection was lost while COMMIT was under way, and the server says that nothing was
    /// committed.
    #[error("the connection failed while COMMIT was under way, and it was rolled back: {0}")]
    Lost(#[source] sqlx::Error),

    /// COMMIT was sent, and what became of it cannot be known.
    #[error("the connection failed while COMMIT was under way: {0}")]
    Unknown(#[source] sqlx::Error),

    /// COMMIT was obeyed, but the disk failed to keep it, and what a restart finds cannot be known.
    #[error("the commit could not be written to the disk for good: {0}")]
    NotDurable(#[source] std::io::Error),
}

/// Why it is not certain that a transaction was rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollbackError {
    /// The transaction that was begun was over already: the handler sent COMMIT or ROLLBACK itself.
    #[error("the transaction had already ended before it was rolled back")]
    Ended {
        /// The backend made sure that nothing of it stays.
        undone: bool,
    },

    /// The session does not answer. It is closed, and the server rolls back what it had open.
    #[error("ROLLBACK was not answered; the session is closed instead: {0}")]
    Lost(#[from] sqlx::Error),
}

/// Tells a transaction from every other of this process.
///
/// Safe code can exchange two sessions through the guards that lend them. A transaction therefore
/// settles only the session that it began on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TransactionId(u64);

impl TransactionId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A connection borrowed from a pool.
///
/// Implemented for each backend; users meet it only in type signatures, and can implement it for
/// nothing else. Guards lend the same type, so it has no method that ends a transaction: settlement
/// alone does that.
///
/// ```compile_fail
/// use rocket_tx::db::{Connection, Session};
///
/// async fn end(connection: &mut Connection) {
///     let _ = connection.rollback().await;
/// }
/// ```
///
/// ```compile_fail
/// use rocket_tx::db::Session;
///
/// async fn end<S: Session>(session: &mut S) {
///     let _ = session.rollback().await;
/// }
/// ```
// Other crates cannot call the methods of a private bound.
#[allow(private_bounds)]
pub trait Session: TransactionControl + Send + Sync + 'static {
    /// What guards dereference to: sqlx's own connection type, or the [by-URL
    /// enum](super::Connection).
    type Connection: Send + Sync + 'static;

    /// The connection itself.
    fn connection(&mut self) -> &mut Self::Connection;

    /// The connection itself, to look at.
    fn connection_ref(&self) -> &Self::Connection;
}

/// How transactions are done on a [`Session`]. Futures that are dropped half way leave the connection
/// in a state that [`Transaction`] takes care of.
pub(crate) trait TransactionControl {
    /// It was opened just now: if it does not work, another will not either.
    fn is_new(&self) -> bool {
        true
    }

    /// The transaction that began on it last.
    fn owner(&mut self) -> &mut Option<TransactionId>;

    /// Sends BEGIN. One round trip.
    fn begin(&mut self, options: BeginOptions) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Proves that COMMIT would mean COMMIT. One round trip, or hop.
    fn prepare(&mut self) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Commits, or says why not. In one round trip it also proves what
    /// [`prepare`](Self::prepare) does, so that it is safe without.
    ///
    /// The session is free as soon as it returns; the commit is durable after
    /// [`Durability::wait`].
    fn commit(&mut self) -> impl Future<Output = Result<Durability, CommitError>> + Send;

    /// Rolls back, and proves that it was this transaction. One round trip.
    fn rollback(&mut self) -> impl Future<Output = Result<(), RollbackError>> + Send;

    /// Ends its transaction from outside; to be asked for when it has begun.
    fn ending(&self) -> Ending {
        Ending::by_closing()
    }

    /// Queues a rollback that the connection does before anything else; for `Drop`.
    fn start_rollback(&mut self);

    /// Has the connection closed, instead of returned to its pool, when it is dropped.
    fn close_on_drop(&mut self);
}

/// An open transaction together with the connection that it owns.
///
/// Dropping it rolls back: the rollback is queued on the connection, which then goes back to its
/// pool; a connection that was abandoned in the middle of a statement of ours is closed instead.
pub struct Transaction<S: Session> {
    session: S,
    id: TransactionId,
    state: State,
    access: Access,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// A statement may be under way that nobody waits for: one of our own, until it is answered.
    Busy,
    /// Nothing more can be found out. `Drop` closes the session.
    Closing,
    Over,
}

impl<S: Session> Transaction<S> {
    /// Begins a transaction on `session`.
    pub async fn begin(session: S, options: BeginOptions) -> sqlx::Result<Self> {
        let mut transaction = Self {
            session,
            id: TransactionId::next(),
            state: State::Over,
            access: options.access,
        };
        transaction.begin_again(options).await?;
        Ok(transaction)
    }

    /// Begins anew on the same connection, after the transaction has ended.
    ///
    /// # Errors
    ///
    /// What BEGIN met; [`sqlx::Error::InvalidSavePointStatement`] if it has not ended.
    pub async fn begin_again(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        if self.state != State::Over {
            return Err(sqlx::Error::InvalidSavePointStatement);
        }
        self.state = State::Busy;
        self.access = options.access;
        *self.session.owner() = Some(self.id);
        let result = self.session.begin(options).await;
        self.state = match result {
            Ok(()) => State::Open,
            Err(_) => State::Over,
        };
        if result
            .as_ref()
            .is_err_and(|error| !matches!(error, sqlx::Error::Database(_)))
        {
            self.session.close_on_drop();
        }
        result
    }

    /// It was begun, and nobody has ended it through this type.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// It was committed or rolled back, so that it can be [begun again](Self::begin_again).
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether it may write.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The connection, to run statements on.
    pub fn connection(&mut self) -> &mut S::Connection {
        self.session.connection()
    }

    /// Proves that [`commit`](Self::commit) would commit.
    ///
    /// # Errors
    ///
    /// Any [`CommitError`] but `Unknown` and `NotDurable`: nothing has been committed then.
    pub async fn prepare(&mut self) -> Result<(), CommitError> {
        self.state = State::Busy;
        if !self.has_its_session() {
            self.state = State::Closing;
            return Err(CommitError::Ended { undone: false });
        }
        let result = self.session.prepare().await;
        // Reaching this line means that the statement was answered, or that the connection is
        // broken in a way that rollback and the pool's own check find out.
        self.state = State::Open;
        result
    }

    /// Commits, gives the connection back, and waits until the commit is durable.
    ///
    /// # Errors
    ///
    /// [`CommitError`]; after anything but `Unknown` and `NotDurable` the transaction is rolled
    /// back.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop a COMMIT that was sent: what became of it is unknown.
    pub async fn commit(mut self) -> Result<(), CommitError> {
        let committed = self.commit_without_waiting().await;
        // Others may have the connection while this one waits for the disk.
        drop(self);
        committed?.wait().await
    }

    /// Commits, and leaves it to the caller to wait until the commit is durable: for work that goes
    /// on with the same transaction, or that a power cut may undo.
    ///
    /// # Errors
    ///
    /// [`CommitError`]; after anything but `Unknown` the transaction can still be rolled back.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop a COMMIT that was sent: what became of it is unknown.
    pub async fn commit_without_waiting(&mut self) -> Result<Durability, CommitError> {
        self.state = State::Busy;
        if !self.has_its_session() {
            self.state = State::Closing;
            return Err(CommitError::Ended { undone: false });
        }
        let result = self.session.commit().await;
        self.state = match &result {
            Ok(_) => State::Over,
            Err(CommitError::Unknown(_)) => State::Closing,
            Err(_) => State::Open,
        };
        result
    }

    /// `false`: a handler has exchanged it for another one. What became of this transaction is for
    /// whoever has its session; the one that is here is closed.
    fn has_its_session(&mut self) -> bool {
        *self.session.owner() == Some(self.id)
    }

    /// Ends the transaction from outside, whoever has its connection.
    pub(crate) fn ending(&self) -> Ending {
        self.session.ending()
    }

    /// Gives the connection up: a statement of somebody else's may be under way on it.
    /// [`rollback`](Self::rollback) ends it from outside, and dropping it closes it.
    pub(crate) fn abandon(&mut self) {
        if self.state == State::Open {
            self.state = State::Busy;
        }
    }

    /// Rolls back. If it fails, the connection will be closed, which rolls back too.
    ///
    /// # Errors
    ///
    /// [`RollbackError`]: something of it may stay, if a handler ended it by itself.
    pub async fn rollback(&mut self) -> Result<(), RollbackError> {
        match self.state {
            State::Over | State::Closing => return Ok(()),
            State::Busy => {
                self.state = State::Closing;
                if !self.has_its_session() {
                    return Err(RollbackError::Ended { undone: false });
                }
                return match self.session.ending().end().await {
                    Ended::Before => Err(RollbackError::Ended { undone: false }),
                    // Nobody sends COMMIT any more: `Drop` closes the session.
                    Ended::RolledBack | Ended::Unasked => Ok(()),
                };
            }
            State::Open => {}
        }
        self.state = State::Closing;
        if !self.has_its_session() {
            return Err(RollbackError::Ended { undone: false });
        }
        let result = self.session.rollback().await;
        if let Ok(()) | Err(RollbackError::Ended { .. }) = &result {
            self.state = State::Over;
        }
        result
    }
}

impl<S: Session> Drop for Transaction<S> {
    fn drop(&mut self) {
        match self.state {
            State::Over => {}
            State::Open => self.session.start_rollback(),
            State::Busy | State::Closing => {
                self.session.start_rollback();
                self.session.close_on_drop();
            }
        }
    }
}
