//! Carrying a verdict out on every resource.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use rocket::Request;
use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::settings::Settings;
use crate::db::{CommitError, Durability};
use crate::tx::failure::{Chain, Error};
use crate::tx::monitor::{EventKind, LiveEntry, Step, micros};
use crate::tx::registry::{Phase, Resource, SettleContext};
use crate::tx::request_id::RequestId;
use crate::tx::verdict::{Action, Outcome};

/// How long a settlement may take, all of it together.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// For begin, prepare and the first COMMIT: some of the time is kept for what follows, the
    /// rollback of what did not make it or the releases of what did.
    pub(in crate::tx) commit: Instant,
    /// For everything. What is not rolled back by then is closed, and the response leaves.
    whole: Instant,
}

impl Deadlines {
    /// From now on.
    pub(super) fn within(limit: Duration) -> Self {
        const ENOUGH: Duration = Duration::from_secs(1);

        let whole = Instant::now() + limit;
        let kept = (limit / 4).min(ENOUGH);
        Self {
            commit: whole - kept,
            whole,
        }
    }
}

/// The settlement of one request: its resources, and how far it has come.
pub(super) struct Run<'a, 'r> {
    settings: &'a Settings,
    request: &'a Request<'r>,
    id: RequestId,
    /// Databases first, each phase in joining order. Empty where a resource is being called, and
    /// where it has been committed: a transaction's connection goes back to its pool at once.
    resources: Vec<Option<Box<dyn Resource>>>,
    names: Vec<String>,
    databases: usize,
    /// The database that asked to be committed last.
    last: Option<usize>,
    /// The databases that were committed, by index: a resource may have the name of another.
    committed: Vec<usize>,
    /// Databases that have been committed and may not be told so yet.
    not_yet_durable: Vec<(usize, Durability)>,
    /// The resources of which nobody can say what became of them.
    doubtful: Vec<usize>,
    deadlines: Deadlines,
    /// Their lines in the list of what is live, until the settlement is over.
    _lines: Vec<LiveEntry>,
}

impl<'a, 'r> Run<'a, 'r> {
    pub(in crate::tx) fn new(
        settings: &'a Settings,
        request: &'a Request<'r>,
        id: RequestId,
        mut resources: Vec<Box<dyn Resource>>,
        lines: Vec<LiveEntry>,
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
            doubtful: Vec::new(),
            deadlines,
            _lines: lines,
        }
    }

    /// What has become of each database, in joining order.
    pub(super) fn outcomes(&self) -> Vec<(String, Outcome)> {
        let databases = self.names[..self.databases].iter().enumerate();
        databases
            .map(|(index, name)| {
                let outcome = if self.committed.contains(&index) {
                    Outcome::Committed
                } else if self.doubtful.contains(&index) {
                    Outcome::Unknown
                } else {
                    Outcome::RolledBack
                };
                (name.clone(), outcome)
            })
            .collect()
    }

    /// Commits everything, or rolls everything back and says why.
    pub(in crate::tx) async fn commit(&mut self) -> Result<(), Error> {
        if let Err(error) = self.commit_or_refuse().await {
            return Err(match self.rollback().await {
                // The error says that nothing was committed, and the database says otherwise.
                Some(ended) if error.outcome() == Outcome::RolledBack => ended,
                _ => error,
            });
        }
        // What is committed stays committed: a release can only be reported.
        for index in self.databases..self.resources.len() {
            let deadline = self.fair_share(index);
            if let Err(error) = self.call(index, Action::Commit, deadline).await {
                let resource = &self.names[index];
                tracing::error!(request = %self.id, %resource, error = %error.text(), "committed, but not released");
            }
        }
        Ok(())
    }

    async fn commit_or_refuse(&mut self) -> Result<(), Error> {
        self.prepare().await?;
        let committed = self.commit_databases().await;
        // Also if a later one refused: what is told as committed is durable.
        self.wait_until_durable().await?;
        committed
    }

    /// Waits until the databases that were committed survive a power cut, all side by side. Their
    /// connections are back in their pools.
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
                "committed, but perhaps not for good: a power cut may undo it"
            );
            self.committed.retain(|committed| *committed != index);
            self.doubtful.push(index);
            failed.push(name.clone());
        }
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Error::Unknown(failed)),
        }
    }

    /// Rolls everything back that is not committed. Each resource is tried, whatever the others
    /// did; a connection that cannot be rolled back is closed when it is dropped.
    ///
    /// Returns the first error by which something may stay all the same: a handler had sent COMMIT
    /// by itself.
    pub(in crate::tx) async fn rollback(&mut self) -> Option<Error> {
        let mut kept = None;
        for index in 0..self.resources.len() {
            let deadline = self.fair_share(index);
            if let Err(error) = self.call(index, Action::Rollback, deadline).await {
                let resource = &self.names[index];
                tracing::warn!(request = %self.id, %resource, error = %error.text(), "cannot be rolled back; it will be closed instead");
                if let Failure::Error(error) = error
                    && error.outcome() == Outcome::Unknown
                {
                    kept.get_or_insert(error);
                }
            }
        }
        kept
    }

    /// What is left for the resource at `index`, so that one that hangs leaves time for the rest.
    fn fair_share(&self, index: usize) -> Instant {
        let now = Instant::now();
        let left = self.deadlines.whole.saturating_duration_since(now);
        let sharers = self.resources[index..].iter().flatten().count();
        let sharers = u32::try_from(sharers.max(1)).unwrap_or(u32::MAX);
        now + left / sharers
    }

    async fn prepare(&mut self) -> Result<(), Error> {
        // A transaction's COMMIT carries its own proof: alone, it needs no round trip for it.
        if self.resources.len() == 1 && self.databases == 1 {
            return Ok(());
        }
        // Releases first: they may write, and then the databases prove that it holds.
        let order = (self.databases..self.resources.len()).chain(0..self.databases);
        for index in order {
            self.call(index, Action::Prepare, self.deadlines.commit)
                .await
                .map_err(|failure| match failure {
                    Failure::Error(error) => error,
                    Failure::Panicked => Error::Panicked,
                    Failure::TimedOut => Error::SettleTimeout(self.settings.settle_timeout),
                })?;
        }
        Ok(())
    }

    async fn commit_databases(&mut self) -> Result<(), Error> {
        let mut order: Vec<usize> = (0..self.databases).collect();
        if let Some(last) = self.last.filter(|last| *last < self.databases) {
            order.retain(|index| *index != last);
            order.push(last);
        }
        for (done, &index) in order.iter().enumerate() {
            // After the first COMMIT the others are worth all the time that there is.
            let deadline = match done {
                0 => self.deadlines.commit,
                _ => self.deadlines.whole,
            };
            if done == 0 && Instant::now() >= deadline {
                return Err(Error::SettleTimeout(self.settings.settle_timeout));
            }
            match self.call(index, Action::Commit, deadline).await {
                Ok(()) => self.committed.push(index),
                Err(Failure::Error(error)) if !matches!(error, Error::Unknown(_)) => {
                    return Err(self.refused(error, &order[done..]));
                }
                // It was sent, and nobody can say what became of it.
                Err(failure) => {
                    tracing::error!(
                        request = %self.id, committed = ?self.names_of(&self.committed),
                        unknown = self.names[index], error = failure.text(),
                        "a COMMIT was not answered; it may have been obeyed"
                    );
                    return Err(Error::Unknown(vec![self.names[index].clone()]));
                }
            }
        }
        Ok(())
    }

    fn refused(&self, error: Error, rest: &[usize]) -> Error {
        if self.committed.is_empty() {
            return error;
        }
        tracing::error!(
            request = %self.id, committed = ?self.names_of(&self.committed), error = %Chain(&error),
            "one database was committed and a later one refused"
        );
        Error::Partial {
            committed: self.names_of(&self.committed),
            refused: self.names_of(rest),
        }
    }

    fn names_of(&self, indices: &[usize]) -> Vec<String> {
        let names = indices.iter().map(|&index| self.names[index].clone());
        names.collect()
    }

    /// One step on one resource, bounded, under `catch_unwind`, with the observers around it.
    async fn call(
        &mut self,
        index: usize,
        action: Action,
        deadline: Instant,
    ) -> Result<(), Failure> {
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
        };
        let span = tracing::debug_span!("step", resource = self.names[index], ?action);
        let work = async {
            match action {
                Action::Prepare => resource.prepare(&mut context).await,
                Action::Commit => resource.commit().await,
                Action::Rollback => resource.rollback(&mut context).await,
            }
        };
        let result = match timeout_at(
            deadline,
            AssertUnwindSafe(work.instrument(span)).catch_unwind(),
        )
        .await
        {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(Failure::Error(error)),
            Ok(Err(_panic)) => Err(Failure::Panicked),
            Err(_elapsed) => Err(Failure::TimedOut),
        };
        self.report(&step, &result, started.elapsed());
        let is_doubtful = match (&result, action) {
            (Err(Failure::Error(error)), _) => error.outcome() == Outcome::Unknown,
            (Err(_), Action::Commit) => true,
            _ => false,
        };
        if is_doubtful {
            self.doubtful.push(index);
        }
        let over = matches!((&result, action), (Ok(()), Action::Commit));
        if over {
            if index < self.databases {
                let durability = resource.durability();
                if !durability.is_reached() {
                    self.not_yet_durable.push((index, durability));
                }
            }
            drop(resource);
            // Who waits for the connection goes on now, and not when this request has ended.
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
            .emit(self.id, || EventKind::Step {
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

/// How a step can fail.
enum Failure {
    Error(Error),
    Panicked,
    /// Its future was dropped in the middle.
    TimedOut,
}

impl Failure {
    fn text(&self) -> String {
        match self {
            Self::Error(error) => error.to_string(),
            Self::Panicked => "it panicked".into(),
            Self::TimedOut => "it took longer than `settle_timeout`".into(),
        }
    }
}
