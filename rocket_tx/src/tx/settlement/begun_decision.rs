//! The progress of an atomic commit, and who finishes it.

use std::sync::Arc;

use crate::db::{AtomicHandle, DecisionId, Recovery};

/// The decision of an atomic commit that has begun.
///
/// On drop, recovery gets what is left to do: to finish what may still be prepared, or to delete the
/// decision. So it gets that also if the settlement is dropped.
pub(super) struct BegunDecision {
    id: DecisionId,
    decider: Arc<AtomicHandle>,
    recovery: Arc<Recovery>,
    /// The last PREPARE TRANSACTION has no certain result.
    is_preparing: bool,
    /// The databases that have prepared and not finished yet, by their indices in the settlement.
    prepared: Vec<usize>,
    is_decided: bool,
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

    pub(super) fn id(&self) -> DecisionId {
        self.id
    }

    /// Notes that PREPARE TRANSACTION is about to be sent.
    pub(super) fn preparing(&mut self) {
        self.is_preparing = true;
    }

    /// Notes that the database at `index` has prepared.
    pub(super) fn prepared(&mut self, index: usize) {
        self.is_preparing = false;
        self.prepared.push(index);
    }

    /// Notes that the database has certainly not prepared.
    pub(super) fn not_prepared(&mut self) {
        self.is_preparing = false;
    }

    /// Notes that the decision to commit is stored.
    pub(super) fn decided(&mut self) {
        self.is_decided = true;
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
