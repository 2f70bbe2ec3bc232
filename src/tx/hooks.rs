//! Work for after the commit, and for after the rollback.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use rocket::futures::FutureExt;
use tokio_util::task::TaskTracker;

use super::settle::message;
use super::verdict::Outcome;

type Hook = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Work for afterwards, in the order in which it was left.
#[derive(Default)]
pub(super) struct Hooks {
    after_commit: Vec<Hook>,
    after_rollback: Vec<Hook>,
}

/// What a hook may return: nothing, or a result whose error is logged.
pub trait HookOutput {
    /// Logs the error, if there is one.
    fn log_error(self);
}

impl HookOutput for () {
    fn log_error(self) {}
}

impl<E: Display> HookOutput for Result<(), E> {
    fn log_error(self) {
        if let Err(error) = self {
            tracing::error!(%error, "a hook failed; the request it belongs to is settled all the same");
        }
    }
}

impl Hooks {
    pub(super) fn after_commit(&mut self, hook: impl Future<Output: HookOutput> + Send + 'static) {
        self.after_commit.push(logged(hook));
    }

    pub(super) fn after_rollback(
        &mut self,
        hook: impl Future<Output: HookOutput> + Send + 'static,
    ) {
        self.after_rollback.push(logged(hook));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.after_commit.is_empty() && self.after_rollback.is_empty()
    }

    /// Runs what is due in a task of its own, one after the other.
    pub(super) fn run(self, outcome: Outcome, in_flight: &TaskTracker) {
        let due = match outcome {
            Outcome::Committed => self.after_commit,
            Outcome::RolledBack => self.after_rollback,
            Outcome::Partial | Outcome::Unknown if self.is_empty() => return,
            Outcome::Partial | Outcome::Unknown => {
                tracing::error!(%outcome, "no hook runs: neither commit nor rollback is certain");
                return;
            }
        };
        if due.is_empty() {
            return;
        }
        in_flight.spawn(async move {
            for hook in due {
                if let Err(panic) = AssertUnwindSafe(hook).catch_unwind().await {
                    tracing::error!(panic = message(&*panic), "a hook panicked");
                }
            }
        });
    }
}

fn logged(hook: impl Future<Output: HookOutput> + Send + 'static) -> Hook {
    Box::pin(async move { hook.await.log_error() })
}
