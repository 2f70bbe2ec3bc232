//! Work for after the commit, and for after the rollback.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use rocket::futures::FutureExt;
use tokio_util::task::TaskTracker;

use crate::tx::monitor::Live;
use crate::tx::panics::message;
use crate::tx::verdict::Outcome;

/// A hook. The future returns `true` if the hook failed.
type Hook = Pin<Box<dyn Future<Output = bool> + Send>>;

/// The hooks of a request, in the order in which they were added.
#[derive(Default)]
pub(in crate::tx) struct Hooks {
    after_commit: Vec<Hook>,
    after_rollback: Vec<Hook>,
}

/// The return type of a hook: `()`, or a result whose error is logged.
pub trait HookOutput {
    /// Logs the error, if there is one. Returns whether there is one.
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
            tracing::error!(%error, "a hook failed; the settlement of its request is not changed");
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

    /// Runs the hooks for `outcome` one after the other, in a separate task.
    pub(in crate::tx) fn run(self, outcome: Outcome, in_flight: &TaskTracker, live: &Live) {
        let due = match outcome {
            Outcome::Committed => self.after_commit,
            Outcome::RolledBack => self.after_rollback,
            Outcome::Partial | Outcome::Unknown if self.is_empty() => return,
            Outcome::Partial | Outcome::Unknown => {
                tracing::error!(%outcome, "no hook runs, because neither commit nor rollback is certain");
                return;
            }
        };
        if due.is_empty() {
            return;
        }
        let live = live.clone();
        #[cfg(feature = "testing")]
        let running = live.hooks_begin();
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
            #[cfg(feature = "testing")]
            drop(running);
        });
    }
}

fn logged(hook: impl Future<Output: HookOutput> + Send + 'static) -> Hook {
    Box::pin(async move { hook.await.log_error() })
}
