//! Which request's response body runs on this thread.

use std::cell::Cell;

use super::request_id::RequestId;

thread_local! {
    /// The request whose body this thread polls.
    static RUNNING: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// Marks the thread as running the body of a request, until it is dropped.
pub(in crate::tx) struct RunningBody {
    before: Option<RequestId>,
}

impl RunningBody {
    pub(in crate::tx) fn of(request: RequestId) -> Self {
        let before = RUNNING.replace(Some(request));
        Self { before }
    }

    /// Whether the body of `request` runs on this thread now.
    pub(in crate::tx) fn is_of(request: RequestId) -> bool {
        RUNNING.get() == Some(request)
    }
}

impl Drop for RunningBody {
    fn drop(&mut self) {
        RUNNING.set(self.before);
    }
}
