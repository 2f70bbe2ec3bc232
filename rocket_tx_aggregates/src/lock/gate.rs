//! The gate: the process-local lock in front of a lease. The tasks of one process queue here in
//! order and are woken without polling. Only the first of them queries the database. A task has its
//! *turn* while it holds the [`Pass`].

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The number of turns after which the tasks of this process let a waiting process take the lease
/// first.
const HAND_OVERS: u32 = 4;

/// The gate of one key.
pub(super) struct Gate {
    /// Has one permit. tokio's semaphore is fair. A dropped waiter leaves the queue, and a task
    /// that panics returns its permit.
    open: Arc<Semaphore>,
    turns: Mutex<Turns>,
}

/// The turns since this process last let another process go first.
#[derive(Default)]
struct Turns {
    taken: u32,
    /// Another process has marked the lease as wanted since then.
    wanted: bool,
}

/// The right to take the lease in the database. Dropping it lets the next task in.
pub(super) struct Pass {
    _permit: OwnedSemaphorePermit,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: Arc::new(Semaphore::new(1)),
            turns: Mutex::default(),
        }
    }
}

impl Gate {
    /// Waits for a turn. Dropping the future leaves the queue.
    pub(super) async fn enter(&self) -> Pass {
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

    /// Counts a release of the lease. `wanted` is `true` if another process had marked the lease as
    /// wanted.
    pub(super) fn mark_released(&self, wanted: bool) {
        let mut turns = self.turns.lock();
        turns.taken += 1;
        turns.wanted |= wanted;
    }

    /// Returns `true` if the next task of this process should let another process go first. Must be
    /// called once per turn.
    pub(super) fn should_yield(&self) -> bool {
        let mut turns = self.turns.lock();
        let due = turns.wanted && turns.taken >= HAND_OVERS;
        if due {
            *turns = Turns::default();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_some_turns_the_gate_yields_to_a_waiting_process() {
        let gate = Gate::default();
        gate.mark_released(true);
        assert!(!gate.should_yield(), "not at the first turn");
        for _ in 1..HAND_OVERS {
            gate.mark_released(false);
        }
        assert!(gate.should_yield());
        assert!(!gate.should_yield(), "only once");
        for _ in 0..2 * HAND_OVERS {
            gate.mark_released(false);
        }
        assert!(!gate.should_yield(), "no other process waits");
        gate.mark_released(true);
        assert!(gate.should_yield());
    }
}
