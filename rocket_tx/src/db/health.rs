//! Logs when a database becomes unreachable or stops taking writes, and when it recovers.
//!
//! The state is derived from the results of requests. Only changes of the state are logged, not
//! each failed request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// The known state of one database.
#[derive(Debug)]
pub(crate) struct Health {
    database: &'static str,
    reach: Condition,
    writes: Condition,
}

/// One aspect of a database's state: good or bad. While it is good, recording another success takes
/// no lock.
#[derive(Debug, Default)]
struct Condition {
    is_bad: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

/// The failures since the condition became bad.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    failures: u64,
}

impl Health {
    pub(crate) fn new(database: &'static str) -> Self {
        Self {
            database,
            reach: Condition::default(),
            writes: Condition::default(),
        }
    }

    /// Records that no connection could be opened.
    pub(crate) fn is_unreachable(&self, error: &sqlx::Error) {
        if self.reach.record_failure() {
            let database = self.database;
            tracing::error!(
                database, %error,
                "the database cannot be reached; requests fail with 503 until it can"
            );
        }
    }

    /// Records that a connection was opened, or that the server replied on one.
    pub(crate) fn is_reached(&self) {
        if let Some(Trouble { since, failures }) = self.reach.record_success() {
            let (database, after) = (self.database, since.elapsed());
            tracing::warn!(
                database,
                failures,
                ?after,
                "the database can be reached again"
            );
        }
    }

    /// Records that the server replied, but refused a transaction that may write.
    pub(crate) fn takes_no_writes(&self, error: &sqlx::Error) {
        self.is_reached();
        if self.writes.record_failure() {
            let database = self.database;
            tracing::error!(
                database, %error,
                "the database takes no writes; requests that write fail with 503 until it does"
            );
        }
    }

    /// Records that a transaction that may write has begun.
    pub(crate) fn takes_writes(&self) {
        self.is_reached();
        if let Some(Trouble { since, failures }) = self.writes.record_success() {
            let (database, after) = (self.database, since.elapsed());
            tracing::warn!(
                database,
                failures,
                ?after,
                "the database takes writes again"
            );
        }
    }
}

impl Condition {
    /// Counts a failure. Returns `true` if it is the first one since the last success.
    fn record_failure(&self) -> bool {
        let mut trouble = self.trouble.lock();
        self.is_bad.store(true, Ordering::Release);
        let is_first = trouble.is_none();
        let known = trouble.get_or_insert_with(|| Trouble {
            since: Instant::now(),
            failures: 0,
        });
        known.failures += 1;
        is_first
    }

    /// Makes the condition good. If it was bad until now, returns the recorded failures.
    fn record_success(&self) -> Option<Trouble> {
        if !self.is_bad.load(Ordering::Acquire) {
            return None;
        }
        let mut trouble = self.trouble.lock();
        self.is_bad.store(false, Ordering::Release);
        trouble.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_failure_and_the_first_success_after_it_are_changes() {
        let condition = Condition::default();
        assert!(condition.record_success().is_none());
        assert!(condition.record_failure());
        assert!(!condition.record_failure());
        assert_eq!(
            condition.record_success().map(|trouble| trouble.failures),
            Some(2)
        );
        assert!(condition.record_success().is_none());
        assert!(condition.record_failure());
    }
}
