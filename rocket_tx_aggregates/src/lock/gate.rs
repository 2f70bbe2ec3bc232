//! The process-local lock in front of a lease: tasks of one process queue here, in order, with
//! real wake-ups, and only the first of them asks the database.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How often a key goes from task to task of one process while another process waits for it.
const HAND_OVERS: u32 = 4;

/// One key's gate.
pub(super) struct Gate {
    /// One permit. tokio's semaphore is fair, a waiter that is dropped gives up its place, and a
    /// panic gives the permit back.
    open: Arc<Semaphore>,
    turns: Mutex<Turns>,
}

/// Since another process last had the key.
#[derive(Default)]
struct Turns {
    taken: u32,
    /// Another process has said meanwhile that it wants it.
    wanted: bool,
}

/// The right to ask the database. Dropping it lets the next task in.
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
    /// Waits for its turn. Dropping the future gives the turn up.
    pub(super) async fn enter(&self) -> Pass {
        let permit = Arc::clone(&self.open).acquire_owned().await;
        Pass {
            _permit: permit.expect("the semaphore of a gate is never closed"),
        }
    }

    pub(super) fn try_enter(&self) -> Option<Pass> {
        let permit = Arc::clone(&self.open).try_acquire_owned().ok()?;
        Some(Pass { _permit: permit })
    }

    /// The lease was released, and another process had said that it wants it, or not.
    pub(super) fn mark_released(&self, wanted: bool) {
        let mut turns = self.turns.lock();
        turns.taken += 1;
        turns.wanted |= wanted;
    }

    /// Whether the next task here should let another process go first. Called once a turn.
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
    fn after_a_few_turns_it_gives_way_to_whoever_has_asked() {
        let gate = Gate::default();
        gate.mark_released(true);
        assert!(!gate.should_yield(), "not at once");
        for _ in 1..HAND_OVERS {
            gate.mark_released(false);
        }
        assert!(gate.should_yield());
        assert!(!gate.should_yield(), "once");
        for _ in 0..2 * HAND_OVERS {
            gate.mark_released(false);
        }
        assert!(!gate.should_yield(), "no other process has asked");
        gate.mark_released(true);
        assert!(gate.should_yield());
    }
}
