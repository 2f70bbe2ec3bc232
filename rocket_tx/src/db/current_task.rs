//! The task, or the thread, that runs the current code.

use std::thread::ThreadId;

/// Where code runs: its task, or with Rocket's local client the thread that blocks on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CurrentTask {
    Task(tokio::task::Id),
    Thread(ThreadId),
}

impl CurrentTask {
    pub(crate) fn here() -> Self {
        match tokio::task::try_id() {
            Some(id) => Self::Task(id),
            None => Self::Thread(std::thread::current().id()),
        }
    }
}
