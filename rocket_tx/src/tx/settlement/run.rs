//! Carries a verdict out on every resource.
//!
//! The resources of [`Phase::Database`] are called databases here, and those of [`Phase::Release`]
//! releases.

mod atomic;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use rocket::Request;
use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::begun_decision::BegunDecision;
use super::settings::Settings;
use crate::db::{CommitError, Decision, Durability, GlobalId};
use crate::tx::failure::{Chain, Error};
use crate::tx::final_response::FinalResponse;
use crate::tx::monitor::{FeedEventKind, LiveEntry, Step, micros};
use crate::tx::registry::{Phase, Resource, SettleContext};
use crate::tx::request_id::RequestId;
use crate::tx::verdict::{Action, Outcome};

/// The deadlines of one settlement.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// For `prepare`, the first COMMIT, and everything before them. It is earlier than `whole`, so
    /// that time is left for rollbacks or releases.
    pub(in crate::tx) commit: Instant,
    /// For the whole settlement. At this time, connections that are not rolled back yet are closed,
    /// and the response leaves.
    whole: Instant,
}

impl Deadlines {
    /// Computes the deadlines of a settlement that begins now and may take `limit`.
    pub(super) fn within(limit: Duration) -> Self {
        const LONGEST_RESERVE: Duration = Duration::from_secs(1);

        let whole = Instant::now() + limit;
        let reserve = (limit / 4).min(LONGEST_RESERVE);
        Self {
            commit: whole - reserve,
            whole,
        }
    }
}

/// The settlement of one request: its resources, and its progress.
pub(super) struct Run<'a, 'r> {
    settings: &'a Settings,
    request: &'a Request<'r>,
    id: RequestId,
    /// Databases first, each phase in joining order. `None` while a resource is being called, and
    /// after its commit: a committed transaction returns its connection to the pool at once.
    resources: Vec<Option<Box<dyn Resource>>>,
    names: Vec<String>,
    databases: usize,
    /// The database that a resource wants to be committed last.
    last: Option<usize>,
    /// The databases that were committed. By index, because two resources may have the same name.
    committed: Vec<usize>,
    /// Databases that were committed but are not durable yet. Until they are durable, they must not
    /// be reported as committed.
    not_yet_durable: Vec<(usize, Durability)>,
    /// The resources whose outcome is unknown.
    unknown: Vec<usize>,
    /// The databases that are known to have written nothing.
    readers: Vec<usize>,
    /// The decision of an atomic commit.
    decision: Option<BegunDecision>,
    /// The databases whose transactions are decided and not committed yet.
    pending: Vec<String>,
    deadlines: Deadlines,
    /// The response that resources may store.
    pub(super) response: Option<FinalResponse>,
    /// The entries of the resources in the live list. They are removed when the settlement ends.
    _live_entries: Vec<LiveEntry>,
}

impl<'a, 'r> Run<'a, 'r> {
    pub(in crate::tx) fn new(
        settings: &'a Settings,
        request: &'a Request<'r>,
        id: RequestId,
        mut resources: Vec<Box<dyn Resource>>,
        live_entries: Vec<LiveEntry>,
        deadlines: Deadlines,
    ) -> Self {
        resources.sort_by_key(|resource| resource.phase());
        let databases = resources
            .iter()
            .filter(|resource| resource.phase() == Phase::Database)
            .count();
        Self {
            settings,
            request,
            id,
            names: resources
                .iter()
                .map(|resource| resource.name().into_owned())
                .collect(),
            resources: resources.into_iter().map(Some).collect(),
            databases,
            last: None,
            committed: Vec::new(),
            not_yet_durable: Vec::new(),
            unknown: Vec::new(),
            readers: Vec::new(),
            decision: None,
            pending: Vec::new(),
            deadlines,
            response: None,
            _live_entries: live_entries,
        }
    }

    /// Returns the outcome of each database, in joining order.
    pub(super) fn outcomes(&self) -> Vec<(String, Outcome)> {
        let databases = self.names[..self.databases].iter().enumerate();
        databases
            .map(|(index, name)| {
                let outcome = if self.committed.contains(&index) {
                    Outcome::Committed
                } else if self.unknown.contains(&index) {
                    Outcome::Unknown
                } else {
                    Outcome::RolledBack
                };
                (name.clone(), outcome)
            })
            .collect()
    }

    /// Returns the databases whose transactions are decided and not committed yet.
    pub(super) fn take_pending(&mut self) -> Vec<String> {
        std::mem::take(&mut self.pending)
    }

    /// Returns the databases that may have committed a change of their own. Those that have written
    /// nothing are left out, and those that are committed by one decision.
    pub(super) fn committed_apart(&self) -> Vec<String> {
        if self.decision.is_some() {
            return Vec::new();
        }
        let indexes = (0..self.databases).filter(|index| {
            let may_be_committed = self.committed.contains(index) || self.unknown.contains(index);
            may_be_committed && !self.readers.contains(index)
        });
        self.names_of(&indexes.collect::<Vec<_>>())
    }

    /// Commits everything. On error, rolls back everything that is not committed.
    pub(in crate::tx) async fn commit(&mut self) -> Result<(), Error> {
        if let Err(error) = self.commit_or_refuse().await {
            return Err(match self.rollback().await {
                // `error` says that nothing was committed, but by the result of a rollback
                // something may have been.
                Some(unknown) if error.outcome() == Outcome::RolledBack => unknown,
                _ => error,
            });
        }
        // Nothing can undo the commits now, so an error of a release is only logged.
        for index in self.databases..self.resources.len() {
            let deadline = self.fair_share(index);
            if let Err(error) = self.call(index, Call::Commit, deadline).await {
                let resource = &self.names[index];
                tracing::error!(
                    request = %self.id, %resource, error = %error.text(),
                    "the databases were committed, but this resource could not be released"
                );
            }
        }
        Ok(())
    }

    async fn commit_or_refuse(&mut self) -> Result<(), Error> {
        self.prepare().await?;
        let committed = self.commit_databases().await;
        // Also wait if a later database refused: everything that is reported as committed must be
        // durable.
        self.wait_until_durable().await?;
        committed
    }

    /// Waits until all committed databases would survive a power cut. The waits run concurrently,
    /// and the connections are already back in their pools.
    async fn wait_until_durable(&mut self) -> Result<(), Error> {
        let waiting = std::mem::take(&mut self.not_yet_durable);
        if waiting.is_empty() {
            return Ok(());
        }
        let deadline = self.deadlines.whole;
        let waits = waiting.into_iter().map(|(index, durability)| async move {
            (index, timeout_at(deadline, durability.wait()).await)
        });
        let mut failed = Vec::new();
        let span = tracing::debug_span!("durable");
        for (index, result) in join_all(waits).instrument(span).await {
            let error = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_elapsed) => CommitError::NotDurable(std::io::ErrorKind::TimedOut.into()),
            };
            let name = &self.names[index];
            tracing::error!(
                request = %self.id, unknown = name, %error,
                "the database was committed, but the commit may not be on its disk, and a power cut may \
                 undo it; check the disk"
            );
            self.committed.retain(|committed| *committed != index);
            self.unknown.push(index);
            failed.push(name.clone());
        }
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Error::Unknown(failed)),
        }
    }

    /// Rolls back everything that is not committed. Tries each resource, also after another one has
    /// failed. A connection that cannot be rolled back is closed when it is dropped.
    ///
    /// Returns the first error with an unknown outcome: changes may remain, for example because the
    /// handler sent COMMIT by itself.
    pub(in crate::tx) async fn rollback(&mut self) -> Option<Error> {
        let mut unknown = None;
        for index in 0..self.resources.len() {
            let deadline = self.fair_share(index);
            // A resource that was left to recovery is not here.
            let is_here = self.resources[index].is_some();
            let rolled_back = self.call(index, Call::Rollback, deadline).await;
            if rolled_back.is_ok()
                && is_here
                && let Some(decision) = &mut self.decision
            {
                decision.finished(index);
            }
            if let Err(error) = rolled_back {
                let resource = &self.names[index];
                tracing::warn!(
                    request = %self.id, %resource, error = %error.text(),
                    "this resource could not be rolled back; it is dropped instead, and the connection \
                     of a transaction is closed"
                );
                if let Failure::Error(error) = error
                    && error.outcome() == Outcome::Unknown
                {
                    unknown.get_or_insert(error);
                }
            }
        }
        unknown
    }

    /// Returns a deadline for the resource at `index`. The remaining time is divided evenly, so
    /// that one resource that hangs leaves time for the others.
    fn fair_share(&self, index: usize) -> Instant {
        let now = Instant::now();
        let left = self.deadlines.whole.saturating_duration_since(now);
        let sharers = self.resources[index..].iter().flatten().count();
        let sharers = u32::try_from(sharers.max(1)).unwrap_or(u32::MAX);
        now + left / sharers
    }

    async fn prepare(&mut self) -> Result<(), Error> {
        // `prepare` checks that the transaction is still the one that this library began, and that
        // it can be committed. COMMIT includes these checks, so a single database needs no separate
        // round trip for them.
        if let [Some(only)] = &mut self.resources[..]
            && only.as_database().is_some()
        {
            return Ok(());
        }
        // Releases first, because they may write. The `prepare` of the databases then checks that
        // these writes can be committed.
        let order = (self.databases..self.resources.len()).chain(0..self.databases);
        for index in order {
            self.call(index, Call::Prepare, self.deadlines.commit)
                .await
                .map_err(|failure| self.error_of(failure))?;
        }
        Ok(())
    }

    /// Commits one database after the other.
    async fn commit_each(&mut self, order: &[usize]) -> Result<(), Error> {
        for (done, &index) in order.iter().enumerate() {
            // If a COMMIT after the first one fails, the request is committed only in part. So
            // these COMMITs may use all the time that is left.
            let deadline = match done {
                0 => self.deadlines.commit,
                _ => self.deadlines.whole,
            };
            if done == 0 && Instant::now() >= deadline {
                return Err(Error::SettleTimeout(self.settings.settle_timeout));
            }
            match self.call(index, Call::Commit, deadline).await {
                Ok(()) => self.committed.push(index),
                Err(Failure::Error(error)) if !matches!(error, Error::Unknown(_)) => {
                    return Err(self.refused(error, &order[done..]));
                }
                // COMMIT may have been sent, and its outcome is unknown.
                Err(failure) => {
                    tracing::error!(
                        request = %self.id, committed = ?self.names_of(&self.committed),
                        unknown = self.names[index], error = failure.text(),
                        "the outcome of a COMMIT is unknown; check whether this database was committed"
                    );
                    return Err(Error::Unknown(vec![self.names[index].clone()]));
                }
            }
        }
        Ok(())
    }

    fn refused(&self, error: Error, rest: &[usize]) -> Error {
        // Nothing was written there, so nothing is committed in part.
        let has_written = |index: &&usize| !self.readers.contains(index);
        if !self.committed.iter().any(|index| has_written(&index)) {
            return error;
        }
        tracing::error!(
            request = %self.id, committed = ?self.names_of(&self.committed), error = %Chain(&error),
            "one database was committed and a later one refused; reconcile them by hand"
        );
        Error::Partial {
            committed: self.names_of(&self.committed),
            refused: self.names_of(rest),
        }
    }

    fn error_of(&self, failure: Failure) -> Error {
        match failure {
            Failure::Error(error) => error,
            Failure::Panicked => Error::Panicked,
            Failure::TimedOut => Error::SettleTimeout(self.settings.settle_timeout),
        }
    }

    fn names_of(&self, indices: &[usize]) -> Vec<String> {
        let names = indices.iter().map(|&index| self.names[index].clone());
        names.collect()
    }

    /// Performs one step on one resource, with the limit `deadline` and under `catch_unwind`. Calls
    /// the observers before and after the step.
    async fn call(
        &mut self,
        index: usize,
        call: Call<'_>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let action = call.action();
        let Some(mut resource) = self.resources[index].take() else {
            return Ok(());
        };
        let step = Step {
            request: self.request,
            resource: &self.names[index],
            action,
            committed: self.committed.len(),
        };
        self.settings
            .monitor
            .observe(|observer| observer.before(&step));
        let started = Instant::now();
        let mut context = SettleContext {
            request: self.id,
            deadline,
            others: &mut self.resources,
            last: &mut self.last,
            response: self.response.as_ref(),
        };
        let span = tracing::debug_span!("step", resource = self.names[index], ?action);
        let work = async {
            match call {
                Call::Prepare => return resource.prepare(&mut context).await,
                Call::Commit => return resource.commit().await,
                Call::Rollback => return resource.rollback(&mut context).await,
                Call::PrepareTransaction(_) | Call::Decide(_) => {}
            }
            match (resource.as_database(), call) {
                (Some(database), Call::PrepareTransaction(id)) => {
                    database.prepare_transaction(id).await
                }
                (Some(database), Call::Decide(decision)) => database.decide(decision).await,
                _ => Ok(()),
            }
        };
        let bounded = timeout_at(
            deadline,
            AssertUnwindSafe(work.instrument(span)).catch_unwind(),
        );
        let result = Failure::of(bounded.await);
        self.report(&step, &result, started.elapsed());
        let is_unknown = match (&result, action) {
            (Err(Failure::Error(error)), _) => error.outcome() == Outcome::Unknown,
            (Err(_), Action::Commit | Action::Decide) => true,
            _ => false,
        };
        if is_unknown {
            self.unknown.push(index);
        }
        let has_committed = matches!((&result, action), (Ok(()), Action::Commit | Action::Decide));
        if has_committed {
            if index < self.databases {
                let durability = resource.durability();
                if !durability.is_reached() {
                    self.not_yet_durable.push((index, durability));
                }
            }
            drop(resource);
            // Yield so that the task waiting for this connection runs now, not after this request.
            tokio::task::yield_now().await;
        } else {
            self.resources[index] = Some(resource);
        }
        result
    }

    fn report(&self, step: &Step<'_, '_>, result: &Result<(), Failure>, took: Duration) {
        let timed_out = Error::SettleTimeout(self.settings.settle_timeout);
        let outcome = match result {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Panicked) => Err(&Error::Panicked),
            Err(Failure::TimedOut) => Err(&timed_out),
        };
        self.settings
            .monitor
            .live
            .emit(self.id, || FeedEventKind::Step {
                resource: step.resource.to_owned(),
                action: step.action,
                failed: outcome
                    .err()
                    .map(|error| error.problem().detail().to_owned()),
                took_us: micros(took),
            });
        self.settings
            .monitor
            .observe(|observer| observer.after(step, outcome, took));
    }
}

/// A step on one resource.
#[derive(Clone, Copy)]
enum Call<'a> {
    Prepare,
    Commit,
    Rollback,
    PrepareTransaction(&'a GlobalId),
    Decide(&'a Decision),
}

impl Call<'_> {
    fn action(self) -> Action {
        match self {
            Self::Prepare => Action::Prepare,
            Self::Commit => Action::Commit,
            Self::Rollback => Action::Rollback,
            Self::PrepareTransaction(_) => Action::PrepareTransaction,
            Self::Decide(_) => Action::Decide,
        }
    }
}

/// The ways in which a step can fail.
enum Failure {
    Error(Error),
    Panicked,
    /// The deadline passed, and the future of the step was dropped.
    TimedOut,
}

impl Failure {
    /// Returns the result of a step that was limited and shielded.
    fn of<E, P>(result: Result<Result<Result<(), Error>, P>, E>) -> Result<(), Self> {
        match result {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(Self::Error(error)),
            Ok(Err(_panic)) => Err(Self::Panicked),
            Err(_elapsed) => Err(Self::TimedOut),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Error(error) => error.to_string(),
            Self::Panicked => "the resource panicked".into(),
            Self::TimedOut => "the step took longer than its share of `settle_timeout`".into(),
        }
    }
}
