//! Attempts of [`Begin::retrying`](crate::tx::Begin::retrying): what a failed one has begun is
//! undone, so that the next one begins anew.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rocket::http::Status;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::attempting::{Attempting, attempt};
use super::begin_step::BeginSteps;
use super::hooks::HookCounts;
use super::open_transaction::SlotContent;
use super::outstanding::{Entry, Outstanding, RequiredTransaction};
use super::resource::{Phase, Resource, SettleContext};
use crate::tx::failure::{Chain, Error, Problem};
use crate::tx::monitor::{FeedEventKind, LiveEntry, micros};
use crate::tx::verdict::{Action, Outcome};

/// What a request had outstanding before its attempts.
pub(in crate::tx) struct BeforeAttempts {
    /// The number of entries in the registry. None of them is a transaction.
    entries: usize,
    required: Vec<RequiredTransaction>,
    steps: BeginSteps,
    hooks: HookCounts,
    doom: Option<(Status, Cow<'static, str>)>,
    failure: Option<Problem>,
}

/// A resource of a failed attempt, with its entry in the live list if it is not a transaction.
type Attempted = (Box<dyn Resource>, Option<LiveEntry>);

impl Outstanding {
    /// Records what the request has outstanding before its attempts. `database` is that of the
    /// `Begin`. Until [`attempts_end`](Self::attempts_end), only code of an
    /// [`attempt`](Self::attempt) can use transactions of the request.
    ///
    /// # Errors
    ///
    /// [`Error::BegunBefore`] if it has a transaction. [`Error::Retrying`] if other attempts are
    /// running. [`Error::Settled`] after the verdict.
    pub(in crate::tx) fn attempts_begin(
        &self,
        database: &'static str,
    ) -> Result<BeforeAttempts, Error> {
        let mut resources = {
            let mut state = self.open_state()?;
            if let Some(attempting) = &state.attempting {
                return Err(attempting.error());
            }
            if let Some(begun) = state.databases().next() {
                return Err(Error::BegunBefore(begun.name));
            }
            state.attempting = Some(Attempting::new(self.request, database));
            std::mem::take(&mut state.entries)
        };
        // Without the lock, because this calls code of other libraries.
        for entry in &mut resources {
            if let Entry::Resource(resource, _) = entry {
                resource.attempts_begin();
            }
        }
        let mut state = self.state.lock();
        let entries = resources.len();
        resources.append(&mut state.entries);
        state.entries = resources;
        Ok(BeforeAttempts {
            entries,
            required: state.required.clone(),
            steps: state.steps.clone(),
            hooks: state.hooks.counts(),
            doom: state.doom.clone(),
            failure: state.failure.clone(),
        })
    }

    /// Runs one attempt.
    pub(in crate::tx) async fn attempt<T>(&self, work: impl Future<Output = T>) -> T {
        attempt(self.request, work).await
    }

    /// Ends the attempts. What the last one has begun stays, unless it was [undone](Self::undo).
    pub(in crate::tx) fn attempts_end(&self) {
        self.state.lock().attempting = None;
    }

    /// Returns an error if it is already certain that a transaction of the request cannot commit,
    /// because of a conflict with one that has committed.
    pub(in crate::tx) async fn detect_conflicts(&self) -> Result<(), Error> {
        let slots: Vec<_> = {
            let state = self.state.lock();
            state
                .databases()
                .map(|entry| Arc::clone(&entry.slot))
                .collect()
        };
        for slot in slots {
            slot.detect_conflict().await?;
        }
        Ok(())
    }

    /// Undoes an attempt: rolls back everything that was begun since `before`, and drops the staged
    /// work, the hooks and the doom.
    ///
    /// # Errors
    ///
    /// After an error, the request is doomed. [`Error::CheckedOut`] if a guard still holds a
    /// transaction of the attempt. [`Error::Ended`] if it is not certain that everything was rolled
    /// back: the attempt itself may have sent COMMIT.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, transactions are rolled back, and their connections are closed if
    /// they do not reply. The other resources are dropped.
    pub(in crate::tx) async fn undo(&self, before: &BeforeAttempts) -> Result<(), Error> {
        let (attempted, held) = self.take_attempted(before);
        let unknown = self.roll_back(attempted).await;
        match held.map(Error::CheckedOut).or(unknown) {
            Some(error) => {
                let problem = error.problem();
                self.doom(problem.status(), problem.detail().to_owned())?;
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Takes out what is to be rolled back after an attempt. Also returns the name of a database
    /// whose transaction a guard holds.
    fn take_attempted(&self, before: &BeforeAttempts) -> (Vec<Attempted>, Option<&'static str>) {
        let mut entries = {
            let mut state = self.state.lock();
            state.required.clone_from(&before.required);
            state.steps = before.steps.clone();
            state.hooks.drop_since(before.hooks);
            let beside = state.attempting.as_ref().and_then(|it| it.doom.as_ref());
            state.doom = before.doom.as_ref().or(beside).cloned();
            state.failure.clone_from(&before.failure);
            std::mem::take(&mut state.entries)
        };
        let new = entries.split_off(before.entries.min(entries.len()));
        let mut kept = entries;
        for entry in &mut kept {
            if let Entry::Resource(resource, _) = entry {
                let _stays = resource.attempt_failed();
            }
        }
        let (mut attempted, mut held) = (Vec::new(), None);
        for entry in new {
            match entry {
                Entry::Resource(mut resource, live) => match resource.attempt_failed() {
                    true => kept.push(Entry::Resource(resource, live)),
                    false => attempted.push((resource, Some(live))),
                },
                Entry::Database(entry) => match entry.slot.take() {
                    SlotContent::Resource(resource) => attempted.push((resource, None)),
                    SlotContent::Nothing => {}
                    SlotContent::CheckedOut => {
                        held = Some(entry.name);
                        kept.push(Entry::Database(entry));
                    }
                },
            }
        }
        let mut state = self.state.lock();
        kept.append(&mut state.entries);
        if !state.closed {
            state.entries = kept;
        }
        (attempted, held)
    }

    /// Rolls back the resources of a failed attempt, databases first. Returns the first error with
    /// an unknown outcome.
    async fn roll_back(&self, mut attempted: Vec<Attempted>) -> Option<Error> {
        /// A resource that takes longer is dropped. The connection of a transaction is then closed.
        const LIMIT: Duration = Duration::from_secs(5);

        attempted.sort_by_key(|(resource, _)| resource.phase());
        let (resources, _live): (Vec<_>, Vec<_>) = attempted.into_iter().unzip();
        let mut resources: Vec<Option<Box<dyn Resource>>> =
            resources.into_iter().map(Some).collect();
        let deadline = Instant::now() + LIMIT;
        let mut unknown = None;
        for index in 0..resources.len() {
            let Some(mut resource) = resources[index].take() else {
                continue;
            };
            let started = Instant::now();
            let mut context = SettleContext {
                request: self.request,
                deadline,
                others: &mut resources,
                last: &mut None,
                response: None,
            };
            let name = resource.name().into_owned();
            let span = tracing::debug_span!("undo", resource = name);
            let rolling_back = resource.rollback(&mut context).instrument(span);
            let result = timeout_at(deadline, rolling_back).await;
            let result = result.unwrap_or(Err(Error::SettleTimeout(LIMIT)));
            self.live.emit(self.request, || FeedEventKind::Step {
                resource: name.clone(),
                action: Action::Rollback,
                failed: (result.as_ref().err()).map(|error| error.problem().detail().to_owned()),
                took_us: micros(started.elapsed()),
            });
            if let Err(error) = result {
                tracing::warn!(
                    request = %self.request, resource = name, error = %Chain(&error),
                    "an attempt could not be rolled back; the resource is dropped instead, and the \
                     connection of a transaction is closed"
                );
                if error.outcome() == Outcome::Unknown {
                    self.leave_unknown(name);
                    unknown.get_or_insert(error);
                }
            }
            resources[index] = Some(resource);
        }
        unknown
    }

    /// Makes the settlement report that the outcome of `database` is unknown.
    fn leave_unknown(&self, database: String) {
        let mut state = self.state.lock();
        let route = state.route.clone();
        let guard = std::any::type_name::<Unknown>();
        let live = (self.live).enter(self.request, route, database.clone().into(), guard);
        let unknown = Entry::Resource(Box::new(Unknown(database)), live);
        state.entries.push(unknown);
    }
}

/// A transaction of an attempt that was ended by the attempt itself, in the database with this
/// name. Some of its changes may be committed.
struct Unknown(String);

#[rocket::async_trait]
impl Resource for Unknown {
    fn name(&self) -> Cow<'_, str> {
        (&*self.0).into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Err(Error::Ended { undone: false })
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        Err(Error::Ended { undone: false })
    }
}
