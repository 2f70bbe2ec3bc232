//! Whether a database can be reached and takes writes, as its users find out: logged when it
//! changes, not for every request that fails meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// What is known of one database.
#[derive(Debug)]
pub(crate) struct Health {
    database: &'static str,
    reach: Condition,
    writes: Condition,
}

/// Good, or bad since when. Free to look at while it is good.
#[derive(Debug, Default)]
struct Condition {
    is_bad: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

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

    /// No connection could be opened.
    pub(crate) fn is_unreachable(&self, error: &sqlx::Error) {
        if self.reach.worsens() {
            let database = self.database;
            tracing::error!(
                database, %error,
                "the database cannot be reached; requests are answered 503 until it can"
            );
        }
    }

    /// A connection was opened, or has answered.
    pub(crate) fn is_reached(&self) {
        if let Some(Trouble { since, failures }) = self.reach.improves() {
            let (database, after) = (self.database, since.elapsed());
            tracing::warn!(
                database,
                failures,
                ?after,
                "the database can be reached again"
            );
        }
    }

    /// A transaction that may write could not begin.
    pub(crate) fn takes_no_writes(&self, error: &sqlx::Error) {
        self.is_reached();
        if self.writes.worsens() {
            let database = self.database;
            tracing::error!(
                database, %error,
                "the database takes no writes; requests that write are answered 503 until it does"
            );
        }
    }

    /// A transaction that may write has begun.
    pub(crate) fn takes_writes(&self) {
        self.is_reached();
        if let Some(Trouble { since, failures }) = self.writes.improves() {
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
    /// Counts a failure; whether it is the first.
    fn worsens(&self) -> bool {
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

    /// What it was like until now, if it was bad.
    fn improves(&self) -> Option<Trouble> {
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
        assert!(condition.improves().is_none());
        assert!(condition.worsens());
        assert!(!condition.worsens());
        assert_eq!(
            condition.improves().map(|trouble| trouble.failures),
            Some(2)
        );
        assert!(condition.improves().is_none());
        assert!(condition.worsens());
    }
}
