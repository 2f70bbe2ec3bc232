//! The request that has the open transaction of the writer.
//!
//! Such a transaction stays open until its request is settled. If the same request waited for the
//! writer meanwhile, it would wait for itself.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::db::CurrentTask;

/// The request whose transaction the writer runs, if it is one of a request.
#[derive(Default)]
pub(super) struct Holder(Mutex<Option<CurrentTask>>);

/// Records that the request of the current task holds the writer, until it is dropped.
pub(super) struct Held(Arc<Holder>);

impl Holder {
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        *self.0.lock() = Some(CurrentTask::here());
        Held(Arc::clone(self))
    }

    /// Returns whether the request that holds the writer runs in this task. Rocket runs each
    /// request in a task of its own.
    pub(super) fn is_this_task(&self) -> bool {
        let here = CurrentTask::here();
        matches!(here, CurrentTask::Task(_)) && *self.0.lock() == Some(here)
    }

    /// Returns whether the request that holds the writer runs in this task, or on this thread. With
    /// Rocket's local client, one thread may run several requests and the test itself: after a wait
    /// that was in vain, this is the likely reason, but before it nothing is certain.
    pub(super) fn is_here(&self) -> bool {
        *self.0.lock() == Some(CurrentTask::here())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}
