//! Records the request whose response body the current thread polls. By this record, a `Read` can
//! detect that the body uses it.
//!
//! Only bodies that `settlement::read_body` wraps are recorded.

use std::cell::Cell;

use super::request_id::RequestId;

thread_local! {
    /// The request whose response body this thread polls.
    static RUNNING: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// Marks the thread as polling the response body of a request. Dropping it restores the mark that
/// the thread had before.
pub(in crate::tx) struct RunningBody {
    before: Option<RequestId>,
}

impl RunningBody {
    pub(in crate::tx) fn of(request: RequestId) -> Self {
        let before = RUNNING.replace(Some(request));
        Self { before }
    }

    /// Whether this thread polls the response body of `request` now.
    pub(in crate::tx) fn is_of(request: RequestId) -> bool {
        RUNNING.get() == Some(request)
    }
}

impl Drop for RunningBody {
    fn drop(&mut self) {
        RUNNING.set(self.before);
    }
}
