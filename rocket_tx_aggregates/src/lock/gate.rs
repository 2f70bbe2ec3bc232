//! The gate: the process-local lock in front of a lease. The tasks of one process queue here in
//! order and are woken without polling. Only the first of them queries the database. A task has its
//! *turn* while it holds the [`Pass`].
//!
//! The gate also keeps one process from starving the others. It *gives way* when it releases a lease
//! that another process waits for, if no task of this process waits, or if this process has had its
//! share of turns. It wakes the other process then, and the next task of this process lets that
//! process take the lease first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The share of a process, in turns: many enough that the time to hand over matters little.
const TURNS: u32 = 8;

/// The share of a process if its turns are long.
const SHARE: Duration = Duration::from_millis(10);

/// How long another process has to take the lease after this process gave way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grace {
    /// Doubled each time that the other process was late.
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

/// The gate of one key.
pub(super) struct Gate {
    grace: Grace,
    /// Has one permit. tokio's semaphore is fair. A dropped waiter leaves the queue, and a task
    /// that panics returns its permit.
    open: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The tasks in the queue.
    waiting: usize,
    /// The turns since this process last gave way.
    turns: u32,
    /// The end of the first of these turns.
    since: Option<Instant>,
    /// Another process has marked the lease as wanted since then.
    wanted: bool,
    /// When this process gave way, until a task has taken notice of it.
    gave_way: Option<Instant>,
    /// How often in succession the other process was late.
    late: u32,
}

/// The right to take the lease in the database. Dropping it lets the next task in.
pub(super) struct Pass {
    _permit: OwnedSemaphorePermit,
}

/// A task in the queue.
struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

impl Default for Gate {
    /// For locks without other processes.
    fn default() -> Self {
        Self::new(Grace {
            first: Duration::ZERO,
            longest: Duration::ZERO,
        })
    }
}

impl Gate {
    pub(super) fn new(grace: Grace) -> Self {
        Self {
            grace,
            open: Arc::new(Semaphore::new(1)),
            state: Mutex::default(),
        }
    }

    /// Waits for a turn. Dropping the future leaves the queue.
    pub(super) async fn enter(&self) -> Pass {
        if let Some(pass) = self.try_enter() {
            return pass;
        }
        self.state.lock().waiting += 1;
        let _waiting = Waiting(self);
        let permit = Arc::clone(&self.open).acquire_owned().await;
        Pass {
            _permit: permit.expect("the semaphore of a gate is never closed"),
        }
    }

    /// Takes a turn if no task has it and none waits for it.
    pub(super) fn try_enter(&self) -> Option<Pass> {
        let permit = Arc::clone(&self.open).try_acquire_owned().ok()?;
        Some(Pass { _permit: permit })
    }

    /// Returns `true` if another process is known to wait for the lease.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.lock().wanted
    }

    /// Returns `true` if a release at the time `now` should wake the processes that wait for the
    /// lease. If the lease is wanted, this process then gives way.
    pub(super) fn should_give_way(&self, now: Instant) -> bool {
        self.state.lock().is_due(now)
    }

    /// Counts a release of the lease. `wanted` is `true` if another process had marked the lease as
    /// wanted, and `wakes` if such a process is woken. Returns `true` if this process gives way.
    pub(super) fn mark_released(&self, wanted: bool, wakes: bool, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.turns += 1;
        state.since.get_or_insert(now);
        state.wanted |= wanted;
        wakes && state.give_way(now)
    }

    /// Returns `true` after a task has left the queue, if no task of this process has or wants the
    /// lease any more, although another process wants it. This process then gives way.
    pub(super) fn is_left(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.waiting == 0 && self.open.available_permits() > 0 && state.give_way(now)
    }

    /// Returns `true` if the next task of this process should let another process take the lease
    /// first.
    pub(super) fn is_yielding(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let until = state
            .gave_way
            .map(|gave_way| gave_way + state.grace(self.grace));
        until.is_some_and(|until| now < until)
    }

    /// Returns until when the next task of this process should let another process take the lease.
    /// Must be called once for each turn that waits for the lease.
    pub(super) fn yields_until(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock();
        let until = state.gave_way.take()? + state.grace(self.grace);
        (now < until).then_some(until)
    }

    /// Returns how long another process has to take the lease after this process gave way.
    pub(super) fn grace(&self) -> Duration {
        self.state.lock().grace(self.grace)
    }

    /// Records whether another process took the lease after this process gave way. A process that
    /// is late gets more time the next time. It probably does not know that its mark is gone. So
    /// the lease counts as wanted until it was late three times: then it has probably gone.
    pub(super) fn mark_yielded(&self, was_taken: bool) {
        let mut state = self.state.lock();
        if was_taken {
            state.late = 0;
        } else {
            state.late = (state.late + 1).min(16);
            state.wanted |= state.late <= 3;
        }
    }
}

impl State {
    /// Gives way if another process wants the lease.
    fn give_way(&mut self, now: Instant) -> bool {
        let gives_way = self.wanted;
        if gives_way {
            (self.turns, self.since, self.wanted) = (0, None, false);
            self.gave_way = Some(now);
        }
        gives_way
    }

    fn is_due(&self, now: Instant) -> bool {
        self.waiting == 0
            || self.turns + 1 >= TURNS
            || self.since.is_some_and(|since| now - since >= SHARE)
    }

    fn grace(&self, Grace { first, longest }: Grace) -> Duration {
        (first * (1 << self.late)).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);

    fn free() -> Gate {
        Gate::new(Grace {
            first: GRACE,
            longest: LONGEST,
        })
    }

    fn release(gate: &Gate, wanted: bool, now: Instant) -> bool {
        let wakes = gate.should_give_way(now);
        gate.mark_released(wanted, wakes, now)
    }

    /// A gate in whose queue a task waits.
    fn busy() -> Gate {
        let gate = free();
        gate.state.lock().waiting = 1;
        gate
    }

    #[test]
    fn a_process_gives_way_after_its_share_of_turns() {
        let (gate, now) = (busy(), Instant::now());
        for round in 0..2 {
            for turn in 1..TURNS {
                assert!(!release(&gate, turn == 3, now), "{round}, {turn}");
                assert_eq!(gate.yields_until(now), None);
            }
            assert!(release(&gate, false, now), "{round}");
            assert_eq!(gate.yields_until(now), Some(now + GRACE));
            assert_eq!(gate.yields_until(now), None, "only once");
        }
    }

    #[test]
    fn a_process_with_long_turns_gives_way_sooner() {
        let (gate, now) = (busy(), Instant::now());
        assert!(!release(&gate, true, now));
        assert!(release(&gate, false, now + SHARE));
    }

    #[test]
    fn a_process_without_waiting_tasks_gives_way_at_once() {
        let (gate, now) = (free(), Instant::now());
        assert!(!release(&gate, false, now), "no process waits");
        assert!(release(&gate, true, now));
        assert_eq!(gate.yields_until(now + GRACE), None, "too late");
    }

    #[test]
    fn a_process_that_is_late_gets_more_time() {
        let (gate, now) = (free(), Instant::now());
        for late in 0..20 {
            assert!(release(&gate, true, now));
            let until = gate.yields_until(now).unwrap();
            assert_eq!(until, now + LONGEST.min(GRACE * (1 << late.min(16))));
            gate.mark_yielded(false);
            assert_eq!(gate.is_wanted(), late < 3);
        }
        gate.mark_yielded(true);
        assert_eq!(gate.grace(), GRACE);
    }
}
