//! The rows of `aggregate_locks`, for one backend.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rocket_tx::db::{Identity, Session, TransactionPool, WaitPolicy};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Proof of having taken a lease: new for every acquisition, and shown to operators only. The owner
/// id is only a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Token(String);

impl Token {
    pub(super) fn mint() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An attempt to take a lease.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The key to lock.
    pub key: Arc<str>,
    /// A label for operators.
    pub owner: Arc<str>,
    /// The proof that it is ours.
    pub token: Token,
    /// For how long, on the database's clock.
    pub ttl: Duration,
}

/// The row that a transaction which writes under a lease must find and delete, or else roll back.
///
/// A holder that was stopped for longer than its time to live finds here that another one has taken
/// over. Only the database that has the row can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Where the row is.
    pub database: Identity,
    /// Its key.
    pub key: Arc<str>,
    /// The proof that it is ours.
    pub token: Token,
}

/// The outcome of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The lease is ours.
    Taken {
        /// Greater than that of any lease of this key before it.
        fencing_token: i64,
        /// Another holder had it, and it had expired.
        taken_over: bool,
    },
    /// Another holder has it, or its row is busy.
    Held {
        /// It is already marked as wanted.
        wanted: bool,
    },
}

/// Whether an open, writing transaction of a request keeps others from a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// No other process can write meanwhile: the request needs no lease.
    Complete,
    /// No other process can write meanwhile, but another holder has a lease.
    Held,
    /// Others can write meanwhile: the request needs a lease, beside the transaction.
    None,
}

/// The outcome of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseOutcome {
    /// The row was still ours.
    pub ours: bool,
    /// Another process waits for it.
    pub wanted: bool,
}

impl ReleaseOutcome {
    /// By the mark of the row that was deleted, if there was one.
    pub(super) fn found(wanted: Option<bool>) -> Self {
        Self {
            ours: wanted.is_some(),
            wanted: wanted.unwrap_or(false),
        }
    }
}

/// A lease, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct LeaseRow {
    /// The locked key.
    pub key: String,
    /// The label of its holder.
    pub owner: String,
    /// By which an operator frees it.
    pub token: String,
    /// Greater than that of any lease of this key before it.
    pub fencing_token: i64,
    /// Milliseconds since it was taken.
    pub age_ms: i64,
    /// Milliseconds until it expires; negative once it has.
    pub expires_in_ms: i64,
    /// Another process waits for it.
    pub wanted: bool,
}

/// Seals [`LeaseStore`]: leases are safe only if each of its statements is atomic.
pub(super) trait Sealed {}

/// The rows of `aggregate_locks` in one database. All times are the database's.
///
/// Every method is bounded by the retry interval where it could wait for another's row.
///
/// Implemented for the pools of `rocket_tx`, and sealed: no other crate can implement it.
// Other crates cannot implement a private bound.
#[allow(private_bounds)]
pub trait LeaseStore: Sealed + Clone + Send + Sync + 'static {
    /// A transaction of a request on the same database.
    type Session: Session;

    /// Which database it is.
    fn database(&self) -> &Identity;

    /// Whether a transaction above READ COMMITTED would not find a row that was renewed since its
    /// snapshot.
    fn needs_read_committed(&self) -> bool;

    /// Tries once to take a lease. A busy row counts as held; so does a database that would have
    /// to be waited for, with [`WaitPolicy::FAIL_FAST`].
    fn take(
        &self,
        claim: &Claim,
        wait: WaitPolicy,
    ) -> impl Future<Output = sqlx::Result<Attempt>> + Send;

    /// Whether an open transaction keeps others from `key`. A lease with the token `ours` does not
    /// count as another holder's.
    fn exclusion(
        connection: &mut <Self::Session as Session>::Connection,
        key: &str,
        ours: Option<&Token>,
    ) -> impl Future<Output = sqlx::Result<Exclusion>> + Send;

    /// Puts off the expiry. `false`: the row is not ours any more. Where it would queue with the
    /// requests, it does so only until `stopped`.
    fn renew(
        &self,
        claim: &Claim,
        stopped: &CancellationToken,
    ) -> impl Future<Output = sqlx::Result<bool>> + Send;

    /// Deletes the row, if it is still ours, and wakes its waiters.
    fn release(
        &self,
        key: &str,
        token: &Token,
    ) -> impl Future<Output = sqlx::Result<ReleaseOutcome>> + Send;

    /// Deletes the row inside a transaction, if it is still ours. Call
    /// [`notify_waiters`](Self::notify_waiters) once it has committed.
    fn release_within(
        connection: &mut <Self::Session as Session>::Connection,
        key: &str,
        token: &Token,
    ) -> impl Future<Output = sqlx::Result<ReleaseOutcome>> + Send;

    /// Wakes waiters for a key in other processes, where the database can.
    fn notify_waiters(&self, key: &str) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Marks a row as wanted by another process. `false`: there is none, or it was marked before.
    fn mark_wanted(&self, key: &str) -> impl Future<Output = sqlx::Result<bool>> + Send;

    /// Resolves when the key may have become free, counted from the call. May resolve for no
    /// reason, and need never resolve at all: waiters try again after the retry interval.
    fn wait_for_release(&self, key: &str) -> impl Future<Output = ()> + Send + 'static;

    /// Deletes rows that expired longer than `grace` ago; never a locked one.
    fn sweep(&self, grace: Duration) -> impl Future<Output = sqlx::Result<u64>> + Send;

    /// All leases, by key.
    fn list(&self) -> impl Future<Output = sqlx::Result<Vec<LeaseRow>>> + Send;

    /// Frees a lease by its token. `false`: there is none.
    fn free(&self, token: &Token) -> impl Future<Output = sqlx::Result<bool>> + Send;

    /// Makes the table, if it is not there.
    fn migrate(&self) -> impl Future<Output = Result<(), rocket_tx::db::Error>> + Send;

    /// How long one attempt may wait for a row, and how often waiters poll.
    fn set_retry_interval(&mut self, interval: Duration);

    /// Runs `work` in a task of its own; shutdown waits for it before it closes the database.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static);
}

/// A pool whose database can hold leases.
pub trait LeasePool: TransactionPool {
    /// Its rows of `aggregate_locks`.
    type Leases: LeaseStore<Session = Self::Session>;

    /// Its rows of `aggregate_locks`.
    fn leases(&self) -> Self::Leases;
}

/// A duration as a parameter of a statement.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// In a task of its own that the pool's closing waits for.
pub(super) fn spawn_before_closing<P: TransactionPool>(
    pool: &P,
    work: impl Future<Output = ()> + Send + 'static,
) {
    match pool.attachment().get() {
        Some(link) => link.spawn(work),
        None => drop(tokio::spawn(work)),
    }
}
