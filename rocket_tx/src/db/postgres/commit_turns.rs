//! Turns to commit, for work at SERIALIZABLE that can be begun anew.
//!
//! The server reports some conflicts only to COMMIT. A request sends COMMIT after its closure has
//! returned, so the closure cannot run again. Before it returns, the server is queried for
//! conflicts, but it knows only those with transactions that have committed. If many requests end
//! their closures at the same time, none of these queries finds anything, and all COMMITs but one
//! fail.
//!
//! So while there are such conflicts, one request after the other goes from that query to its
//! COMMIT. The next one then learns of the conflict as long as it can begin anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

/// How long after a conflict requests take turns.
const CONTENDED: Duration = Duration::from_secs(10);

/// How long a request waits for its turn. The one before it may do something slow between its
/// closure and its response, or may itself wait for what this one holds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The turns of one pool.
pub(super) struct CommitTurns {
    turn: Arc<Mutex<()>>,
    made: Instant,
    /// The milliseconds after `made` until which requests take turns. 0 before the first conflict.
    contended_until: AtomicU64,
}

/// The right to commit next. It ends when it is dropped.
pub(super) struct CommitTurn(#[expect(dead_code)] OwnedMutexGuard<()>);

impl CommitTurns {
    pub(super) fn new() -> Self {
        Self {
            turn: Arc::default(),
            made: Instant::now(),
            contended_until: AtomicU64::new(0),
        }
    }

    /// Waits for a turn. Returns `None` if there were no conflicts of late, or after a limit: the
    /// request then goes on without one.
    pub(super) async fn take(&self) -> Option<CommitTurn> {
        if self.now() >= self.contended_until.load(Ordering::Relaxed) {
            return None;
        }
        let turn = timeout(LONGEST_WAIT, Arc::clone(&self.turn).lock_owned()).await;
        turn.ok().map(CommitTurn)
    }

    /// Records that the server has reported a conflict at the end of a transaction.
    pub(super) fn note_conflict(&self) {
        let until = self.now() + u64::try_from(CONTENDED.as_millis()).unwrap_or_default();
        self.contended_until.store(until, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
