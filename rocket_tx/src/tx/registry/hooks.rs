//! Work for after the commit, after the rollback, and after the settlement.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use rocket::futures::FutureExt;
use tokio::sync::oneshot::{self, Receiver};
use tokio::time::timeout;
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
    after_settlement: Vec<Hook>,
}

/// How many hooks of each kind a request had.
#[derive(Clone, Copy)]
pub(super) struct HookCounts([usize; 3]);

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

    pub(super) fn after_settlement(
        &mut self,
        hook: impl Future<Output: HookOutput> + Send + 'static,
    ) {
        self.after_settlement.push(logged(hook));
    }

    pub(super) fn counts(&self) -> HookCounts {
        let kinds = [
            &self.after_commit,
            &self.after_rollback,
            &self.after_settlement,
        ];
        HookCounts(kinds.map(Vec::len))
    }

    /// Drops the hooks that were added since `counts`.
    pub(super) fn drop_since(&mut self, counts: HookCounts) {
        let kinds = [
            &mut self.after_commit,
            &mut self.after_rollback,
            &mut self.after_settlement,
        ];
        for (hooks, count) in kinds.into_iter().zip(counts.0) {
            hooks.truncate(count);
        }
    }

    pub(in crate::tx) fn is_empty(&self) -> bool {
        self.counts().0 == [0; 3]
    }

    /// Runs the hooks that are due after a settlement with this `outcome`, one after the other, in
    /// a separate task. Returns when those of `after_settlement` have ended, at the latest after
    /// `limit`. They come first.
    pub(in crate::tx) async fn run(
        self,
        outcome: Outcome,
        limit: Duration,
        in_flight: &TaskTracker,
        live: &Live,
    ) {
        let Some(ended) = self.start(outcome, in_flight, live) else {
            return;
        };
        if timeout(limit, ended).await.is_err() {
            tracing::error!(
                ?limit,
                "a hook of `after_settlement` takes longer than `settle_timeout`; the response leaves before it has ended"
            );
        }
    }

    /// Starts the task of [`run`](Self::run). Returns a receiver that fails when the hooks of
    /// `after_settlement` have ended, if there are any.
    pub(super) fn start(
        self,
        outcome: Outcome,
        in_flight: &TaskTracker,
        live: &Live,
    ) -> Option<Receiver<()>> {
        let due = match outcome {
            Outcome::Committed => self.after_commit,
            Outcome::RolledBack => self.after_rollback,
            Outcome::Partial | Outcome::Unknown => {
                if !self.after_commit.is_empty() || !self.after_rollback.is_empty() {
                    tracing::error!(
                        %outcome,
                        "no hook of `after_commit` or `after_rollback` runs, because neither is certain"
                    );
                }
                Vec::new()
            }
        };
        let awaited = self.after_settlement;
        if due.is_empty() && awaited.is_empty() {
            return None;
        }
        let is_waiting = !awaited.is_empty();
        let (ends, ended) = oneshot::channel();
        let live = live.clone();
        #[cfg(feature = "testing")]
        let running = live.hooks_begin();
        in_flight.spawn(async move {
            run_each(awaited, &live).await;
            drop(ends);
            run_each(due, &live).await;
            #[cfg(feature = "testing")]
            drop(running);
        });
        is_waiting.then_some(ended)
    }
}

async fn run_each(hooks: Vec<Hook>, live: &Live) {
    for hook in hooks {
        let failed = AssertUnwindSafe(hook).catch_unwind().await;
        let failed = failed.unwrap_or_else(|panic| {
            tracing::error!(panic = message(&*panic), "a hook panicked");
            true
        });
        if failed {
            live.count_hook_failure();
        }
    }
}

fn logged(hook: impl Future<Output: HookOutput> + Send + 'static) -> Hook {
    Box::pin(async move { hook.await.log_error() })
}
