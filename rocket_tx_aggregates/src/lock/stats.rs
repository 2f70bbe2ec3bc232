//! Counters of lease attempts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The counters of a lock manager since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStats {
    /// Leases acquired.
    pub acquired: u64,
    /// Of the acquired leases: those taken over from another holder, whose lease had expired.
    pub taken_over: u64,
    /// Attempts that found the key held or its row busy.
    pub contended: u64,
    /// Waits that ended without a lease: the longest wait passed, the database failed, or the
    /// waiting future was dropped.
    pub given_up: u64,
    /// The sum of all waits that ended with a lease. Each wait is counted from the call to the
    /// acquisition, and includes the time in the gate.
    pub waited: Duration,
}

#[derive(Clone, Default)]
pub(super) struct Counters(Arc<Inner>);

#[derive(Default)]
struct Inner {
    acquired: AtomicU64,
    taken_over: AtomicU64,
    contended: AtomicU64,
    given_up: AtomicU64,
    waited_us: AtomicU64,
}

impl Counters {
    pub(super) fn acquired(&self, waited: Duration, taken_over: bool) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.0.waited_us.fetch_add(micros, Ordering::Relaxed);
        self.0.acquired.fetch_add(1, Ordering::Relaxed);
        let taken_over = u64::from(taken_over);
        self.0.taken_over.fetch_add(taken_over, Ordering::Relaxed);
    }

    pub(super) fn contended(&self) {
        self.0.contended.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn given_up(&self) {
        self.0.given_up.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> LeaseStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LeaseStats {
            acquired: read(&self.0.acquired),
            taken_over: read(&self.0.taken_over),
            contended: read(&self.0.contended),
            given_up: read(&self.0.given_up),
            waited: Duration::from_micros(read(&self.0.waited_us)),
        }
    }
}
