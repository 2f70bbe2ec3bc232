//! Work for after the commit, and for after the rollback.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use rocket::futures::FutureExt;
use tokio_util::task::TaskTracker;

use crate::tx::monitor::Live;
use crate::tx::panics::message;
use crate::tx::verdict::Outcome;

/// Says whether it failed.
type Hook = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Work for afterwards, in the order in which it was left.
#[derive(Default)]
pub(in crate::tx) struct Hooks {
    after_commit: Vec<Hook>,
    after_rollback: Vec<Hook>,
}

/// What a hook may return: nothing, or a result whose error is logged.
pub trait HookOutput {
    /// Logs the error, if there is one; says whether there was.
    fn log_error(self) -> bool;
}

impl HookOutput for () {
    fn log_error(self) -> bool {
        false
    }
}

impl<E: Display> HookOutput for Result<(), E> {
    fn log_error(self) -> bool {
        if let Err(error) = &self {
            tracing::error!(%error, "a hook failed; the request it belongs to is settled all the same");
        }
        self.is_err()
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

    pub(in crate::tx) fn is_empty(&self) -> bool {
        self.after_commit.is_empty() && self.after_rollback.is_empty()
    }

    /// Runs what is due in a task of its own, one after the other.
    pub(in crate::tx) fn run(self, outcome: Outcome, in_flight: &TaskTracker, live: &Live) {
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
        let live = live.clone();
        in_flight.spawn(async move {
            for hook in due {
                let failed = AssertUnwindSafe(hook).catch_unwind().await;
                let failed = failed.unwrap_or_else(|panic| {
                    tracing::error!(panic = message(&*panic), "a hook panicked");
                    true
                });
                if failed {
                    live.count_hook_failure();
                }
            }
        });
    }
}

fn logged(hook: impl Future<Output: HookOutput> + Send + 'static) -> Hook {
    Box::pin(async move { hook.await.log_error() })
}
