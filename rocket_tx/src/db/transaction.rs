//! An open transaction that owns its connection.
//!
//! Settlement needs two things that sqlx's own `Transaction` does not offer: a check whether COMMIT
//! would really commit, and a way to close a connection that cannot be rolled back.

mod options;
mod two_phase;
mod work;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use options::TransactionOptions;
pub use work::TransactionGuard;
pub(crate) use work::work_in;

use super::{Decided, Decision, Durability, Ended, Ending, GlobalId};

/// How strictly a transaction is isolated from others.
///
/// The variants are ordered: each one guarantees everything that the earlier ones guarantee. SQLite
/// transactions are always serializable, whichever variant is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Isolation {
    /// What the server is configured to: READ COMMITTED, unless the server says otherwise.
    #[default]
    Configured,
    /// Postgres's REPEATABLE READ: one snapshot for the whole transaction.
    RepeatableRead,
    /// SERIALIZABLE: the result is the same as if the transactions ran one after the other.
    Serializable,
}

/// Whether a transaction may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Access {
    /// Reads only. The database refuses writes.
    ReadOnly,
    /// Reads and writes.
    #[default]
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
    /// The caller is the registry of a request, which has no transaction of this database.
    is_first: bool,
}

impl WaitPolicy {
    /// Queues for a connection, at most `connect_timeout`. The default.
    pub const QUEUE: Self = Self {
        queues: true,
        busy_timeout: None,
        is_first: false,
    };

    /// Fails at once if no connection is free, or if another process has locked the SQLite file. A
    /// new connection may still be opened if the pool is not full. Use this policy while the caller
    /// holds something that another request may be waiting for.
    pub const FAIL_FAST: Self = Self {
        queues: false,
        busy_timeout: Some(Duration::ZERO),
        is_first: false,
    };

    /// Waits at most `limit` for a lock of another process, instead of the configured
    /// `busy_timeout`. While one request waits for the lock, no other request of this process can
    /// write. SQLite only.
    pub const fn busy_timeout(self, limit: Duration) -> Self {
        Self {
            busy_timeout: Some(limit),
            ..self
        }
    }

    /// The caller holds no transaction of this database. So it cannot wait for itself, also if the
    /// transaction that it waits for belongs to a request of the same task.
    pub(crate) fn first_of_request(self) -> Self {
        Self {
            is_first: true,
            ..self
        }
    }

    /// Returns `false` if the caller cannot wait for itself.
    #[cfg(feature = "sqlite")]
    pub(crate) fn may_wait_for_itself(self) -> bool {
        !self.is_first
    }

    /// Returns `true` if the policy queues for a connection.
    pub(crate) fn queues(self) -> bool {
        self.queues
    }

    /// Returns the limit for a lock of another process. `usual` is the configured `busy_timeout`.
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

/// The options of BEGIN. The default reads and writes, with the isolation that the server is
/// configured to, and queues for a connection.
///
/// ```
/// use rocket_tx::db::{Access, BeginOptions, Isolation};
///
/// let options = BeginOptions::new().access(Access::ReadOnly).isolation(Isolation::Serializable);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct BeginOptions {
    pub(crate) isolation: Isolation,
    pub(crate) access: Access,
    pub(crate) wait: WaitPolicy,
}

impl BeginOptions {
    /// Returns the default.
    pub const fn new() -> Self {
        Self {
            isolation: Isolation::Configured,
            access: Access::ReadWrite,
            wait: WaitPolicy::QUEUE,
        }
    }

    /// Sets the isolation from other transactions.
    pub const fn isolation(self, isolation: Isolation) -> Self {
        Self { isolation, ..self }
    }

    /// Sets whether the transaction may write.
    pub const fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// Sets how long to wait for a connection, and for a lock of another process.
    pub const fn wait(self, wait: WaitPolicy) -> Self {
        Self { wait, ..self }
    }
}

/// Why a commit failed, or why its outcome is unknown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// An earlier statement failed, the handler ignored the error, and Postgres has aborted the
    /// transaction. Postgres would execute a COMMIT as a ROLLBACK.
    #[error("the transaction was already aborted by a failed statement")]
    Aborted,

    /// The transaction has already ended: the handler sent COMMIT or ROLLBACK itself, or SQLite
    /// rolled back by itself.
    #[error("the transaction had already ended before it was settled")]
    Ended {
        /// `true` if it is certain that nothing of the transaction is committed. SQLite's commit
        /// hook guarantees this, unless a handler has replaced the hook. On Postgres this is always
        /// `false`, because a handler can end the transaction and write more.
        undone: bool,
    },

    /// A deferred foreign key is violated, so that COMMIT would fail. Only SQLite reports this
    /// error; it does not name the key. Postgres names the constraint in
    /// [`Refused`](Self::Refused).
    #[error("a deferred foreign key is violated")]
    ConstraintBroken,

    /// The database refused the commit. Nothing was committed.
    #[error("the database refused the commit: {0}")]
    Refused(#[source] sqlx::Error),

    /// The database cannot prepare this transaction for an atomic commit over several databases.
    /// Nothing was committed. The error names the cause: temporary tables, LISTEN or NOTIFY, a
    /// cursor `WITH HOLD`, or a setting of the server.
    #[error("the transaction cannot be prepared: {0}")]
    CannotPrepare(#[source] sqlx::Error),

    /// Another process has rolled the transaction back, because this one took too long to decide.
    #[error("another process has decided to roll back")]
    DecidedToAbort,

    /// The connection was lost during COMMIT, and the server reports that nothing was committed.
    #[error("the connection failed during COMMIT, and the transaction was rolled back: {0}")]
    Lost(#[source] sqlx::Error),

    /// COMMIT was sent, and its outcome is unknown.
    #[error("COMMIT failed, and it is unknown whether the transaction was committed: {0}")]
    Unknown(#[source] sqlx::Error),

    /// COMMIT succeeded, but the sync to the disk failed. It is unknown whether the commit will
    /// still exist after a restart.
    #[error("the commit could not be synced to the disk: {0}")]
    NotDurable(#[source] std::io::Error),
}

/// Why it is not certain that a transaction was rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollbackError {
    /// The transaction had already ended, or may have ended: usually the handler sent COMMIT or
    /// ROLLBACK itself.
    #[error("the transaction had already ended before it was rolled back")]
    Ended {
        /// `true` if it is certain that nothing of the transaction is committed.
        undone: bool,
    },

    /// The session does not reply, or ROLLBACK failed. The session is closed, so that the database
    /// rolls back.
    #[error("ROLLBACK failed; the session is closed instead: {0}")]
    Lost(#[from] sqlx::Error),
}

/// Identifies a transaction within this process.
///
/// A handler can swap the sessions of two guards with safe code (`std::mem::swap`). Therefore a
/// transaction checks that the session which it is about to settle is the one on which it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TransactionId(u64);

impl TransactionId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A connection that was acquired from a pool.
///
/// Implemented for each backend. Users see it only in type signatures; other crates cannot
/// implement it. Handlers have access to the same type, so it has no method that ends a
/// transaction: only settlement does that.
///
/// ```compile_fail
/// use rocket_tx::db::{Session, UrlConnection};
///
/// async fn end(connection: &mut UrlConnection) {
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
// The bound is private, so other crates cannot call its methods.
#[allow(private_bounds)]
pub trait Session: TransactionControl + Send + Sync + 'static {
    /// The type that guards dereference to: sqlx's own connection type, or the [by-URL
    /// enum](super::UrlConnection).
    type Connection: Send + Sync + 'static;

    /// Returns the connection.
    fn connection(&mut self) -> &mut Self::Connection;

    /// Returns the connection as a shared reference.
    fn connection_ref(&self) -> &Self::Connection;

    /// Says that this session is as it was when it was acquired: all its statements got all their
    /// replies, and none of them changed the session. Its next user then gets it without a check. Each
    /// later use of the connection takes this back.
    ///
    /// For statements of libraries only: statements of a handler may change a session. Do not call it
    /// if a stream of rows was not read to its end: the next user could receive the rest.
    fn mark_unchanged(&mut self);
}

/// The transaction operations of a [`Session`].
///
/// If one of the futures is dropped before it has completed, the state of the connection is
/// unknown. [`Transaction`] handles that case.
pub(crate) trait TransactionControl {
    /// Returns `true` if the connection was opened just now. If a new connection does not work, it
    /// makes no sense to try another one.
    fn is_new(&self) -> bool {
        true
    }

    /// Returns the id of the last transaction that began on this session.
    fn owner(&mut self) -> &mut Option<TransactionId>;

    /// Sends BEGIN. One round trip.
    fn begin(&mut self, options: BeginOptions) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Proves that COMMIT would commit this transaction. Takes one round trip on Postgres, and one
    /// exchange with the thread of the connection on SQLite.
    fn prepare(&mut self) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Commits, or returns why that was not possible. `commit` is safe without
    /// [`prepare`](Self::prepare): it also makes sure that it commits this transaction. That takes
    /// no other round trip, except for some transactions on Postgres.
    ///
    /// The session is free when this returns. The commit is durable after [`Durability::wait`].
    fn commit(&mut self) -> impl Future<Output = Result<Durability, CommitError>> + Send;

    /// Does the proof of [`prepare`](Self::prepare) for one of several databases. It also finds out
    /// whether the transaction has written, in the same round trip.
    fn prepare_among_several(&mut self) -> impl Future<Output = Result<(), CommitError>> + Send {
        self.prepare()
    }

    /// Returns `false` if [`prepare_among_several`](Self::prepare_among_several) has found that the
    /// transaction has written nothing.
    fn may_have_written(&self) -> bool {
        true
    }

    /// Sends PREPARE TRANSACTION, with the proof, in one round trip. Afterwards the session is in
    /// no transaction.
    fn prepare_transaction(
        &mut self,
        id: &GlobalId,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Inserts the decision to commit, and commits as [`commit`](Self::commit) does.
    fn decide(
        &mut self,
        decision: &Decision,
    ) -> impl Future<Output = Result<Durability, CommitError>> + Send;

    /// Commits or rolls back the transaction that this session has prepared.
    fn finish_prepared(
        &mut self,
        id: &GlobalId,
        decided: Decided,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Returns an error if the server has already decided that this transaction cannot commit,
    /// because of a conflict with another transaction that has committed. At SERIALIZABLE on
    /// Postgres this takes one round trip. Elsewhere, statements report every conflict themselves.
    fn detect_conflict(&mut self) -> impl Future<Output = sqlx::Result<()>> + Send {
        async { Ok(()) }
    }

    /// Records that a request holds the session until it is settled. So the same request does not
    /// wait for the session.
    fn hold_for_request(&mut self) {}

    /// Rolls back, and makes sure that this ended this transaction and not another one. One round
    /// trip, unless the session is lost.
    fn rollback(&mut self) -> impl Future<Output = Result<(), RollbackError>> + Send;

    /// Returns an [`Ending`] of the transaction. Call this after the transaction has begun.
    fn ending(&self) -> Ending {
        Ending::by_closing()
    }

    /// Queues a rollback that the connection executes before any later statement. For `Drop`.
    fn start_rollback(&mut self);

    /// Makes the connection close when it is dropped, instead of returning to its pool.
    fn close_on_drop(&mut self);
}

/// An open transaction and the connection that it owns.
///
/// Dropping a `Transaction` rolls back: the rollback is queued on the connection, and the
/// connection returns to its pool. The connection is closed instead in two cases: the result of a
/// statement of this library is unknown, or a handler has abandoned a statement on the connection.
pub struct Transaction<S: Session> {
    session: S,
    id: TransactionId,
    state: State,
    access: Access,
    /// It is known to have written, so the database need not be asked.
    has_written: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A statement may still be running: one of this library whose reply is not read yet, or one
    /// that a handler has abandoned.
    Busy,
    /// The transaction cannot be used any more. `Drop` closes the session.
    Closing,
    /// Prepared under this name. The session is in no transaction.
    Prepared(GlobalId),
    /// Committed, rolled back, or never begun.
    Ended,
}

impl<S: Session> Transaction<S> {
    /// Begins a transaction on `session`.
    pub async fn begin(session: S, options: BeginOptions) -> sqlx::Result<Self> {
        let mut transaction = Self {
            session,
            id: TransactionId::next(),
            state: State::Ended,
            access: options.access,
            has_written: false,
        };
        transaction.begin_again(options).await?;
        Ok(transaction)
    }

    /// Begins another transaction on the same connection, after this one has ended.
    ///
    /// # Errors
    ///
    /// The error of BEGIN, or [`sqlx::Error::InvalidSavePointStatement`] if the transaction has not
    /// ended.
    pub(crate) async fn begin_again(&mut self, options: BeginOptions) -> sqlx::Result<()> {
        if self.state != State::Ended {
            return Err(sqlx::Error::InvalidSavePointStatement);
        }
        self.state = State::Busy;
        self.access = options.access;
        self.has_written = false;
        *self.session.owner() = Some(self.id);
        let result = self.session.begin(options).await;
        self.state = match result {
            Ok(()) => State::Open,
            Err(_) => State::Ended,
        };
        if result
            .as_ref()
            .is_err_and(|error| !matches!(error, sqlx::Error::Database(_)))
        {
            self.session.close_on_drop();
        }
        result
    }

    /// Returns `true` if the transaction has begun, was not ended through this type, and no
    /// statement on it is abandoned.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns `true` if the transaction was committed or rolled back. Then [`Self::begin_again`]
    /// is allowed.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Ended
    }

    /// Returns whether the transaction may write.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the connection, to run statements on.
    pub fn connection(&mut self) -> &mut S::Connection {
        self.session.connection()
    }

    /// Proves that [`commit`](Self::commit) would commit.
    ///
    /// # Errors
    ///
    /// Any [`CommitError`] except `Unknown` and `NotDurable`. This method itself commits nothing.
    pub async fn prepare(&mut self) -> Result<(), CommitError> {
        self.start_step()?;
        let result = self.session.prepare().await;
        // This line is reached only if the future was not dropped. So no statement is running any
        // more, or the connection is broken, which rollback and the check of the pool detect.
        self.state = State::Open;
        result
    }

    /// Commits, returns the connection to its pool, and waits until the commit is durable.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After `Unknown` and `NotDurable` the outcome is unknown. After `Ended` with
    /// `undone: false` the handler may have committed some changes itself. After any other error
    /// the transaction is rolled back.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop a COMMIT that was sent. Its outcome is then unknown.
    pub async fn commit(mut self) -> Result<(), CommitError> {
        let committed = self.commit_without_waiting().await;
        // Another request can use the connection while this one waits for the disk.
        drop(self);
        committed?.wait().await
    }

    /// Commits without waiting until the commit is durable. The caller must wait for the returned
    /// [`Durability`], or accept that a power cut may undo the commit.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After any error except `Unknown` the transaction can still be rolled back.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop a COMMIT that was sent. Its outcome is then unknown.
    pub async fn commit_without_waiting(&mut self) -> Result<Durability, CommitError> {
        self.start_step()?;
        let result = self.session.commit().await;
        self.state = match &result {
            Ok(_) => State::Ended,
            Err(CommitError::Unknown(_)) => State::Closing,
            Err(_) => State::Open,
        };
        result
    }

    /// Marks a statement of this library as running.
    ///
    /// # Errors
    ///
    /// [`CommitError::Ended`] if a handler has swapped the session for another one.
    fn start_step(&mut self) -> Result<(), CommitError> {
        if !self.has_its_session() {
            self.state = State::Closing;
            return Err(CommitError::Ended { undone: false });
        }
        self.state = State::Busy;
        Ok(())
    }

    /// Returns `false` if a handler has swapped the session for another one. `Drop` then closes the
    /// session that is here now. The outcome of this transaction is unknown: it depends on the
    /// guard that now holds the original session.
    fn has_its_session(&mut self) -> bool {
        *self.session.owner() == Some(self.id)
    }

    /// Returns an [`Ending`], by which another task can end the transaction while a guard holds the
    /// connection.
    pub(crate) fn ending(&self) -> Ending {
        self.session.ending()
    }

    /// Marks the connection as unusable, because an abandoned statement of a handler may be running
    /// on it. After that, [`rollback`](Self::rollback) ends the transaction from outside, and
    /// dropping the transaction closes the connection.
    pub(crate) fn abandon(&mut self) {
        if self.state == State::Open {
            self.state = State::Busy;
        }
    }

    /// Rolls back. If that fails, the connection will be closed, which rolls back too.
    ///
    /// # Errors
    ///
    /// [`RollbackError`]. If a handler ended the transaction itself, some of its changes may be
    /// committed.
    pub async fn rollback(&mut self) -> Result<(), RollbackError> {
        match self.state {
            State::Ended | State::Closing => return Ok(()),
            State::Prepared(id) => {
                return self.finish(&id, Decided::Abort).await.map_err(Into::into);
            }
            State::Busy => {
                self.state = State::Closing;
                if !self.has_its_session() {
                    return Err(RollbackError::Ended { undone: false });
                }
                return match self.session.ending().end().await {
                    Ended::Before => Err(RollbackError::Ended { undone: false }),
                    // No COMMIT can follow, because `Drop` closes the session.
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
            self.state = State::Ended;
        }
        result
    }
}

impl<S: Session> Drop for Transaction<S> {
    fn drop(&mut self) {
        match self.state {
            State::Ended | State::Prepared(_) => {}
            State::Open => self.session.start_rollback(),
            State::Busy | State::Closing => {
                self.session.start_rollback();
                self.session.close_on_drop();
            }
        }
    }
}
