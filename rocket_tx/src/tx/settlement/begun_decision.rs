//! The progress of an atomic commit, and who finishes it.

use std::sync::Arc;

use crate::db::{AtomicHandle, DecisionId, Recovery};

/// The decision of an atomic commit that has begun.
///
/// On drop, recovery gets what is left to do: to finish what may still be prepared, or to delete the
/// decision. So it gets that also if the settlement is dropped.
pub(super) struct BegunDecision {
    pub(super) id: DecisionId,
    decider: Arc<AtomicHandle>,
    recovery: Arc<Recovery>,
    /// The last PREPARE TRANSACTION has no certain result.
    pub(super) is_preparing: bool,
    /// The databases that have prepared and not finished yet.
    pub(super) prepared: Vec<usize>,
    pub(super) is_decided: bool,
}

impl BegunDecision {
    pub(super) fn new(decider: Arc<AtomicHandle>, recovery: Arc<Recovery>) -> Self {
        Self {
            id: DecisionId::mint(),
            decider,
            recovery,
            is_preparing: false,
            prepared: Vec::new(),
            is_decided: false,
        }
    }

    /// Notes that a prepared transaction was committed or rolled back.
    pub(super) fn finished(&mut self, index: usize) {
        self.prepared.retain(|prepared| *prepared != index);
    }
}

impl Drop for BegunDecision {
    fn drop(&mut self) {
        let decided_by = self.is_decided.then_some(self.decider.database);
        if self.is_preparing || !self.prepared.is_empty() {
            self.recovery.resolve(self.id, decided_by);
        } else if let Some(decider) = decided_by {
            self.recovery.forget(decider, self.id);
        }
    }
}
