//! The interface to the rows of `aggregate_locks`, implemented for each backend.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rocket::serde::json::serde_json::{Value, json};
use rocket_tx::db::{Identity, Session, TransactionPool, WaitPolicy};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Identifies one acquisition of a lease. Every acquisition has a new token, which is shown only to
/// operators. A row is *ours* if it has the token of our acquisition; the owner id is only a label.
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

/// The values that an acquisition writes to the row of the lease.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The key to lock.
    pub key: Arc<str>,
    /// A label for operators.
    pub owner: Arc<str>,
    /// Identifies the row as ours.
    pub token: Token,
    /// The time to live, on the database's clock.
    pub ttl: Duration,
    /// The row is marked as wanted from the start, because another process is known to wait.
    pub wanted: bool,
}

/// The lease row that a transaction must delete before it commits. If the row is gone, the
/// transaction rolls back.
///
/// In this way a holder that was stopped for longer than the time to live detects that another
/// holder has taken the lease over. A transaction in another database than the row's cannot detect
/// this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The database that has the row.
    pub database: Identity,
    /// The key of the row.
    pub key: Arc<str>,
    /// Identifies the row as ours.
    pub token: Token,
}

/// The result of one attempt to take a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The lease is ours.
    Taken {
        /// Greater than the fencing token of any earlier lease of this key.
        fencing_token: i64,
        /// The lease of another holder had expired, and was taken over.
        taken_over: bool,
    },
    /// Another holder has the lease, or its row is busy.
    Held {
        /// The row is already marked as wanted, or cannot be marked now.
        wanted: bool,
    },
}

/// The result of a look at the row of another holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// No other holder has a live lease.
    Free,
    /// Another holder has the lease, or its row is busy.
    Held {
        /// The row is marked as wanted, or cannot be marked now.
        wanted: bool,
    },
}

/// Whether an open write transaction of a request keeps other holders from a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// No other process can write until the transaction ends. The request needs no lease.
    Complete,
    /// No other process can write until the transaction ends, but another holder has a lease.
    Held,
    /// Other processes can write during the transaction. The request needs a lease as well.
    None,
}

/// The result of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseOutcome {
    /// The row was still ours when it was deleted.
    pub ours: bool,
    /// The row was marked as wanted: another process waits for the key.
    pub wanted: bool,
}

impl ReleaseOutcome {
    /// Makes the result from the `wanted` column of the deleted row; `None` if no row was deleted.
    pub(super) fn found(wanted: Option<bool>) -> Self {
        Self {
            ours: wanted.is_some(),
            wanted: wanted.unwrap_or(false),
        }
    }
}

/// Returns the keys and tokens of leases, as the statements that release them receive them.
pub(crate) fn keys_and_tokens(fences: &[&Fence]) -> Value {
    let lease = |fence: &&Fence| json!([*fence.key, fence.token.as_str()]);
    Value::from_iter(fences.iter().map(lease))
}

/// Returns the outcomes of `fences`, from the keys of the deleted rows and whether these rows were
/// wanted.
pub(crate) fn outcomes_of(fences: &[&Fence], deleted: Vec<(String, bool)>) -> Vec<ReleaseOutcome> {
    let deleted: HashMap<String, bool> = deleted.into_iter().collect();
    let outcome = |fence: &&Fence| ReleaseOutcome::found(deleted.get(&*fence.key).copied());
    fences.iter().map(outcome).collect()
}

/// A claim, as the statement that takes several leases receives it.
#[derive(Serialize)]
pub(super) struct ClaimRow<'a> {
    key: &'a str,
    owner: &'a str,
    token: &'a str,
    ttl: i64,
    wanted: bool,
}

impl<'a> From<&'a Claim> for ClaimRow<'a> {
    fn from(claim: &'a Claim) -> Self {
        Self {
            key: &claim.key,
            owner: &claim.owner,
            token: claim.token.as_str(),
            ttl: millis(claim.ttl),
            wanted: claim.wanted,
        }
    }
}

/// Returns the attempts of `claims`, from the keys that were taken.
pub(super) fn attempts_of(claims: &[&Claim], taken: Vec<(String, Attempt)>) -> Vec<Attempt> {
    let taken: HashMap<String, Attempt> = taken.into_iter().collect();
    let attempt = |claim: &&Claim| taken.get(&*claim.key).copied();
    let attempts = claims.iter().map(attempt);
    attempts
        .map(|taken| taken.unwrap_or(Attempt::Held { wanted: false }))
        .collect()
}

/// A lease as it is shown to an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct LeaseRow {
    /// The locked key.
    pub key: String,
    /// The label of its holder.
    pub owner: String,
    /// The token with which an operator can free the lease.
    pub token: String,
    /// Greater than the fencing token of any earlier lease of this key.
    pub fencing_token: i64,
    /// Milliseconds since the lease was taken.
    pub age_ms: i64,
    /// Milliseconds until the lease expires; negative after it has expired.
    pub expires_in_ms: i64,
    /// Another process waits for the lease.
    pub wanted: bool,
}

/// Keeps other crates from implementing [`LeaseStore`]. Leases are safe only if each statement of
/// an implementation is atomic.
pub(super) trait Sealed {}

/// The rows of `aggregate_locks` in one database. All times are those of the database's clock.
///
/// A method that finds a row locked by another process waits for it no longer than the retry
/// interval. Implemented for the pools of `rocket_tx`, and sealed: no other crate can implement it.
// Other crates cannot implement a private bound.
#[allow(private_bounds)]
pub trait LeaseStore: Sealed + Clone + Send + Sync + 'static {
    /// The session of a request's transaction on the same database.
    type Session: Session;

    /// Returns the identity of the database.
    #[doc(hidden)]
    fn database(&self) -> &Identity;

    /// Returns `true` if transactions with a fence must be READ COMMITTED. On such a database a
    /// stricter transaction cannot delete a row that was renewed after the transaction's snapshot.
    #[doc(hidden)]
    fn needs_read_committed(&self) -> bool;

    /// Tries once to take a lease. A busy row is reported as [`Attempt::Held`]. With
    /// [`WaitPolicy::FAIL_FAST`] the attempt does not wait for a connection that a request could
    /// hold: if none is free, the lease is reported as held. `marks`: the row of another holder is
    /// marked as wanted.
    #[doc(hidden)]
    fn take(
        &self,
        claim: &Claim,
        wait: WaitPolicy,
        marks: bool,
    ) -> impl Future<Output = sqlx::Result<Attempt>> + Send;

    /// Tries once to take the leases of several keys, with one statement. The keys are sorted.
    /// Returns the attempts in the order of `claims`.
    ///
    /// Takes the keys before the first one that is [`Attempt::Held`]. In a race it also takes keys
    /// after that one, and the caller must then release these. Marks no row as wanted.
    #[doc(hidden)]
    fn take_all(
        &self,
        claims: &[&Claim],
        wait: WaitPolicy,
    ) -> impl Future<Output = sqlx::Result<Vec<Attempt>>> + Send;

    /// Returns whether an open transaction keeps other holders from `key`. A lease with the token
    /// `ours` does not count as that of another holder.
    #[doc(hidden)]
    fn exclusion(
        connection: &mut <Self::Session as Session>::Connection,
        key: &str,
        ours: Option<&Token>,
    ) -> impl Future<Output = sqlx::Result<Exclusion>> + Send;

    /// Sets the expiry to one time to live from now. Returns `false` if the row is not ours any
    /// more. Once `stopped` is cancelled, the method stops waiting in a queue that it shares with
    /// requests, and returns an error.
    #[doc(hidden)]
    fn renew(
        &self,
        claim: &Claim,
        stopped: &CancellationToken,
    ) -> impl Future<Output = sqlx::Result<bool>> + Send;

    /// Deletes the row if it is still ours. `wakes`: if the row was wanted, the waiters in other
    /// processes are woken.
    #[doc(hidden)]
    fn release(
        &self,
        key: &str,
        token: &Token,
        wakes: bool,
    ) -> impl Future<Output = sqlx::Result<ReleaseOutcome>> + Send;

    /// Deletes the rows that are still ours inside a transaction, with one statement. Returns the
    /// outcomes in the order of `fences`. After the commit, the caller calls
    /// [`notify_waiters`](Self::notify_waiters) for each row that was wanted.
    #[doc(hidden)]
    fn release_within(
        connection: &mut <Self::Session as Session>::Connection,
        fences: &[&Fence],
    ) -> impl Future<Output = sqlx::Result<Vec<ReleaseOutcome>>> + Send;

    /// Wakes the waiters for a key in other processes, if that is possible.
    #[doc(hidden)]
    fn notify_waiters(&self, key: &str) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Looks at the row of another holder, and marks it as wanted if no transaction is changing it.
    #[doc(hidden)]
    fn want(&self, claim: &Claim) -> impl Future<Output = sqlx::Result<Look>> + Send;

    /// Returns `true` if waiters in other processes can be woken.
    #[doc(hidden)]
    fn wakes_waiters(&self) -> bool;

    /// Returns a future that resolves when the key may have become free after this call. The future
    /// may resolve without a reason, or never: waiters also try again after the retry interval.
    #[doc(hidden)]
    fn wait_for_release(&self, key: &str) -> impl Future<Output = ()> + Send + 'static;

    /// Deletes rows that expired more than `grace` ago, except locked ones, and returns their
    /// number.
    #[doc(hidden)]
    fn sweep(&self, grace: Duration) -> impl Future<Output = sqlx::Result<u64>> + Send;

    /// Returns all leases, sorted by key.
    #[doc(hidden)]
    fn list(&self) -> impl Future<Output = sqlx::Result<Vec<LeaseRow>>> + Send;

    /// Frees a lease by its token. Returns `false` if there is no such lease.
    #[doc(hidden)]
    fn free(&self, token: &Token) -> impl Future<Output = sqlx::Result<bool>> + Send;

    /// Creates the tables of the leases, or brings them up to date.
    #[doc(hidden)]
    fn migrate(&self) -> impl Future<Output = Result<(), rocket_tx::db::PoolError>> + Send;

    /// Sets the retry interval: how long one attempt may wait for a locked row.
    #[doc(hidden)]
    fn set_retry_interval(&mut self, interval: Duration);

    /// Sets the most connections for lease statements, if the database has such connections.
    #[doc(hidden)]
    fn set_max_connections(&mut self, number: u32);

    /// Runs `work` in a separate task. The shutdown waits for this task before it closes the
    /// database.
    #[doc(hidden)]
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static);
}

/// A pool whose database can hold leases.
pub trait LeasePool: TransactionPool {
    /// The type of its rows of `aggregate_locks`.
    type Leases: LeaseStore<Session = Self::Session>;

    /// Returns its rows of `aggregate_locks`.
    fn leases(&self) -> Self::Leases;
}

/// Converts a duration to milliseconds, as a parameter of a statement.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Runs `work` in a separate task. Closing the pool waits for this task, if the pool is attached to
/// a service.
pub(super) fn spawn_before_closing<P: TransactionPool>(
    pool: &P,
    work: impl Future<Output = ()> + Send + 'static,
) {
    match pool.attachment().get() {
        Some(link) => link.spawn(work),
        None => drop(tokio::spawn(work)),
    }
}
