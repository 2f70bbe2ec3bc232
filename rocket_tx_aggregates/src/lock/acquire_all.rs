//! Taking the leases of several keys.
//!
//! One statement takes all of them if nobody else has one of them or waits for it. Otherwise it takes
//! the keys before the first one that is refused. This process then waits for that key as if it were
//! the only one, and tries again to take the rest with one statement.
//!
//! # Why two calls cannot deadlock
//!
//! All calls take their keys in sorted order, and none of them waits for a key while it holds a later
//! one. Suppose that several calls wait for each other. One of them holds the last of the keys that
//! they wait for, and itself waits for a later one. So that key was not the last, which is a
//! contradiction. Two things can be held: the pass of a gate, and the row of a lease.
//!
//! - A statement for several keys needs the passes of their gates. They are taken only if they are
//!   free, and in sorted order, up to the first one that is not.
//! - The statement itself waits for no lease, and takes no row behind the first one that is refused.
//!   If it did so in a race, these leases are released at once, by tasks that wait for no key. The
//!   passes behind the first refused key are dropped before this process waits for it.

use std::sync::Arc;

use rocket_tx::db::WaitPolicy;
use tokio::time::Instant;

use super::acquire::{Tried, Turn, WaitRecord};
use super::deadline::Deadline;
use super::error::LockError;
use super::gate::Gate;
use super::key::Key;
use super::lease::Lease;
use super::run_to_end::RunToEnd;
use super::store::{Attempt, Claim, LeaseStore};

/// The most leases that one statement takes. On Postgres the statement holds an advisory lock for
/// each key, and by default the server has room for 6,400 locks of all sessions.
const MOST: usize = 250;

/// Waits for the leases of `keys`, which are sorted and have no duplicates.
///
/// # Cancellation
///
/// Dropping the future releases the leases that were taken. A statement that was already sent still
/// runs; the leases that it takes are released at once.
pub(super) async fn acquire_all<S: LeaseStore>(
    keys: &[Arc<Key<S>>],
    deadline: Deadline,
) -> Result<Vec<Lease<S>>, LockError> {
    let Some(first) = keys.first() else {
        return Ok(Vec::new());
    };
    let wait = WaitPolicy::QUEUE.busy_timeout(first.settings.retry_interval);
    if deadline.is_immediate() {
        let tried = try_acquire_all(keys, wait).await?;
        return tried.map_err(|held| deadline.timeout_error(&held));
    }
    let waiting = WaitRecord::of(first);
    let mut leases = Vec::with_capacity(keys.len());
    while let Some(key) = keys.get(leases.len()) {
        let now = std::time::Instant::now();
        let is_free = |gate: &Gate| !gate.is_yielding(now);
        let mut turns = free_turns(&keys[leases.len()..], waiting.since, is_free);
        let turn = if turns.len() > 1 {
            let taken = deadline.timeout(&key.name, take_all(turns, wait));
            let Taken {
                leases: all,
                refused,
            } = taken.await??;
            leases.extend(all);
            match refused {
                Some(turn) => turn,
                None => continue,
            }
        } else {
            match turns.pop() {
                Some(turn) => turn,
                None => {
                    let pass = deadline.timeout(&key.name, key.enter()).await?;
                    Turn::new(key, pass, waiting.since)
                }
            }
        };
        let name = Arc::clone(&turn.key.name);
        leases.push(deadline.timeout(&name, turn.wait()).await??);
    }
    waiting.finish();
    Ok(leases)
}

/// Takes the leases of `keys`, which are sorted and have no duplicates, if all of them are free now.
/// Otherwise returns a key that is not free, as the inner error.
pub(super) async fn try_acquire_all<S: LeaseStore>(
    keys: &[Arc<Key<S>>],
    wait: WaitPolicy,
) -> Result<Result<Vec<Lease<S>>, Arc<str>>, LockError> {
    let since = Instant::now();
    let mut leases = Vec::with_capacity(keys.len());
    while leases.len() < keys.len() {
        let rest = &keys[leases.len()..];
        let rest = &rest[..rest.len().min(MOST)];
        let mut turns = free_turns(rest, since, |_| true);
        if let Some(busy) = rest.get(turns.len()) {
            busy.counters.contended();
            return Ok(Err(Arc::clone(&busy.name)));
        }
        let refused = if turns.len() > 1 {
            let taken = take_all(turns, wait).await?;
            leases.extend(taken.leases);
            taken.refused
        } else {
            turns.pop()
        };
        // A lease may be refused to a statement for several keys although it is free, because the
        // source of fencing tokens is not open. The statement for one key opens it.
        if let Some(turn) = refused {
            match turn.take(wait, false).await? {
                Tried::Taken(lease) => leases.push(lease),
                Tried::Held { turn, .. } => return Ok(Err(Arc::clone(&turn.key.name))),
            }
        }
    }
    Ok(Ok(leases))
}

/// Takes turns at the gates of the first of `keys`, up to the first gate that is not free. At most
/// [`MOST`].
fn free_turns<S: LeaseStore>(
    keys: &[Arc<Key<S>>],
    since: Instant,
    is_free: impl Fn(&Gate) -> bool,
) -> Vec<Turn<S>> {
    let turns = keys.iter().take(MOST).map_while(|key| {
        let pass = is_free(&key.gate).then(|| key.gate.try_enter());
        Some(Turn::new(key, pass.flatten()?, since))
    });
    turns.collect()
}

/// What one statement has taken.
struct Taken<S: LeaseStore> {
    /// The leases before the first one that was refused.
    leases: Vec<Lease<S>>,
    /// The turn at the first key that was refused.
    refused: Option<Turn<S>>,
}

/// Tries once to take several leases, with one statement.
///
/// # Cancellation
///
/// If the future is dropped, the attempt continues in a separate task, which releases the leases that
/// it takes.
async fn take_all<S: LeaseStore>(
    turns: Vec<Turn<S>>,
    wait: WaitPolicy,
) -> Result<Taken<S>, LockError> {
    match turns.first() {
        Some(first) => {
            let store = first.key.store.clone();
            RunToEnd::new(store.clone(), try_take_all(store, turns, wait)).await
        }
        None => Ok(Taken {
            leases: Vec::new(),
            refused: None,
        }),
    }
}

async fn try_take_all<S: LeaseStore>(
    store: S,
    mut turns: Vec<Turn<S>>,
    wait: WaitPolicy,
) -> Result<Taken<S>, LockError> {
    for turn in &mut turns {
        turn.claim.wanted = turn.key.gate.is_wanted();
    }
    let claims: Vec<&Claim> = turns.iter().map(|turn| &turn.claim).collect();
    let sent_at = Instant::now();
    let attempts = match store.take_all(&claims, wait).await {
        Ok(attempts) => attempts,
        Err(error) => {
            for turn in turns {
                turn.release_if_sent(&error);
            }
            return Err(error.into());
        }
    };
    let mut taken = Taken {
        leases: Vec::with_capacity(turns.len()),
        refused: None,
    };
    for (turn, attempt) in turns.into_iter().zip(attempts) {
        match attempt {
            Attempt::Taken {
                fencing_token,
                taken_over,
            } => {
                let lease = turn.taken(fencing_token, taken_over, sent_at);
                // A lease behind the first refused one is released: it is dropped.
                if taken.refused.is_none() {
                    taken.leases.push(lease);
                }
            }
            Attempt::Held { .. } => {
                taken.refused.get_or_insert(turn);
            }
        }
    }
    Ok(taken)
}
