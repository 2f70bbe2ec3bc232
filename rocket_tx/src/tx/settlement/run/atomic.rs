//! Commits several databases: all of them, or none.
//!
//! 1. Every participant prepares its transaction.
//! 2. The decider commits its transaction together with the decision. From then on, everything is
//!    committed, also if this process dies.
//! 3. Every participant commits what it has prepared. If one cannot be reached, recovery does that
//!    later, in this or in another process.

use std::any::TypeId;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::{Call, Failure, Run};
use crate::db::{AtomicHandle, Decided, Decider, DeciderId, Decision, GlobalId};
use crate::tx::failure::Error;
use crate::tx::monitor::Step;
use crate::tx::settlement::atomic::Roles;
use crate::tx::settlement::begun_decision::BegunDecision;
use crate::tx::verdict::{Action, Outcome};

impl Run<'_, '_> {
    /// Returns the databases that may have written, with their types.
    fn writers(&mut self) -> Vec<(usize, Option<TypeId>)> {
        let mut writers = Vec::new();
        for (index, resource) in self.resources[..self.databases].iter_mut().enumerate() {
            let Some(resource) = resource else { continue };
            match resource.as_database() {
                Some(database) if !database.may_have_written() => {}
                Some(database) => writers.push((index, Some(database.database()))),
                None => writers.push((index, None)),
            }
        }
        writers
    }

    /// Commits all databases. Those that have written nothing commit first: if one of them refuses,
    /// everything is rolled back.
    pub(super) async fn commit_databases(&mut self) -> Result<(), Error> {
        let writers = match self.databases {
            1 => vec![(0, None)],
            _ => self.writers(),
        };
        let is_writer = |index: &usize| writers.iter().any(|(writer, _)| writer == index);
        self.readers = (0..self.databases)
            .filter(|index| !is_writer(index))
            .collect();
        let roles = match self.settings.atomic.get() {
            Some(atomic) => atomic.roles(&writers, self.last),
            None => Roles::Separate,
        };
        let mut order = self.readers.clone();
        match roles {
            Roles::Separate => {
                order.extend(writers.iter().map(|(index, _)| index));
                if let Some(last) = self.last.filter(is_writer) {
                    order.retain(|index| *index != last);
                    order.push(last);
                }
                self.commit_each(&order).await
            }
            Roles::Atomic {
                decider,
                participants,
            } => {
                self.commit_each(&order).await?;
                // Boxed: the future of a request that writes one database stays small.
                Box::pin(self.commit_atomically(decider, &participants)).await
            }
        }
    }

    async fn commit_atomically(
        &mut self,
        decider: usize,
        participants: &[usize],
    ) -> Result<(), Error> {
        let Some((handle, by)) = self.begin_decision(decider) else {
            return Err(Error::SettleTimeout(self.settings.settle_timeout));
        };
        for (number, &index) in participants.iter().enumerate() {
            self.prepare_transaction(index, by.id, number).await?;
        }
        self.decide(decider, participants, &handle, &by).await?;
        self.committed.push(decider);
        // A power cut must not undo the decision after a participant has committed.
        if let Err(error) = self.wait_until_durable().await {
            self.leave_in_doubt(participants);
            return Err(error);
        }
        self.committed.extend(participants);
        self.commit_prepared(participants).await;
        Ok(())
    }

    /// Begins a decision of the database at `index`. Writes nothing yet.
    fn begin_decision(&mut self, index: usize) -> Option<(Arc<AtomicHandle>, Decider)> {
        let atomic = self.settings.atomic.get()?;
        let database = self.resources[index].as_mut()?.as_database()?.database();
        let handle = atomic.database(database)?;
        let by = handle.decider().ok()?.clone();
        let recovery = Arc::clone(&atomic.recovery);
        self.decision = Some(BegunDecision::new(Arc::clone(handle), recovery));
        Some((Arc::clone(handle), by))
    }

    /// Prepares the transaction of the database at `index`.
    async fn prepare_transaction(
        &mut self,
        index: usize,
        decider: DeciderId,
        participant: usize,
    ) -> Result<(), Error> {
        let Some(decision) = &mut self.decision else {
            return Ok(());
        };
        decision.is_preparing = true;
        let name = GlobalId {
            decider,
            decision: decision.id,
            participant,
        };
        let prepare = Call::PrepareTransaction(&name);
        let result = self.call(index, prepare, self.deadlines.commit).await;
        let Some(decision) = &mut self.decision else {
            return Ok(());
        };
        match result {
            Ok(()) => {
                decision.is_preparing = false;
                decision.prepared.push(index);
                Ok(())
            }
            Err(failure) => {
                // Without a reply, it may be prepared.
                decision.is_preparing = match &failure {
                    Failure::Error(error) => matches!(error, Error::ConnectionLost(_)),
                    Failure::Panicked | Failure::TimedOut => true,
                };
                Err(self.error_of(failure))
            }
        }
    }

    /// Commits the decider. If its reply is lost, queries the decision.
    async fn decide(
        &mut self,
        index: usize,
        participants: &[usize],
        handle: &AtomicHandle,
        by: &Decider,
    ) -> Result<(), Error> {
        let Some(id) = self.decision.as_ref().map(|begun| begun.id) else {
            return Ok(());
        };
        let decision = Decision {
            id,
            participants: self.ids_of(participants),
            table: Arc::clone(&by.table),
        };
        let decide = Call::Decide(&decision);
        let decided = self.call(index, decide, self.deadlines.commit).await;
        let failure = match decided {
            Ok(()) => {
                self.is_decided();
                return Ok(());
            }
            Err(Failure::Error(error)) if error.outcome() != Outcome::Unknown => return Err(error),
            Err(failure) => failure,
        };
        tracing::warn!(
            request = %self.id, decider = handle.name, decision = %decision.id,
            error = failure.text(), "the decision to commit got no reply; querying it"
        );
        // A SQLite file is queried with the connection that this transaction may still hold.
        drop(self.resources[index].take());
        let querying = handle.pool.decide_or_abort(by, decision.id);
        let queried = timeout_at(self.deadlines.whole, querying).await;
        match queried {
            Ok(Ok(Decided::Commit)) => {
                self.unknown.retain(|unknown| *unknown != index);
                self.is_decided();
                Ok(())
            }
            Ok(Ok(Decided::Abort)) => {
                self.unknown.retain(|unknown| *unknown != index);
                Err(Error::DecidedToAbort)
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!(
                    request = %self.id, decider = handle.name, decision = %decision.id,
                    "the decision cannot be queried; the prepared transactions stay in doubt until \
                     recovery can query it"
                );
                self.leave_in_doubt(participants);
                let all = [participants, &[index]].concat();
                Err(Error::Unknown(self.names_of(&all)))
            }
        }
    }

    /// Returns the ids of the databases at `indices`.
    fn ids_of(&mut self, indices: &[usize]) -> Vec<DeciderId> {
        let Some(atomic) = self.settings.atomic.get() else {
            return Vec::new();
        };
        let id = |index: &usize| {
            let database = self.resources[*index].as_mut()?.as_database()?.database();
            Some(atomic.database(database)?.decider().ok()?.id)
        };
        indices.iter().filter_map(id).collect()
    }

    fn is_decided(&mut self) {
        if let Some(decision) = &mut self.decision {
            decision.is_decided = true;
        }
    }

    /// Leaves prepared transactions to recovery: only the decision says how they end.
    fn leave_in_doubt(&mut self, participants: &[usize]) {
        for &index in participants {
            drop(self.resources[index].take());
            self.unknown.push(index);
        }
    }

    /// Commits what was prepared, in all databases at once. If one of them cannot be reached,
    /// recovery commits it later, and the database is [pending](Run::take_pending).
    async fn commit_prepared(&mut self, participants: &[usize]) {
        let deadline = self.deadlines.whole;
        let mut resources = Vec::new();
        for &index in participants {
            if let Some(resource) = self.resources[index].take() {
                resources.push((index, resource));
            }
        }
        let step = |index: usize| Step {
            request: self.request,
            resource: &self.names[index],
            action: Action::CommitPrepared,
            committed: self.committed.len(),
        };
        let monitor = &self.settings.monitor;
        for (index, _) in &resources {
            monitor.observe(|observer| observer.before(&step(*index)));
        }
        let commits = resources.iter_mut().map(|(index, resource)| {
            let action = Action::CommitPrepared;
            let span = tracing::debug_span!("step", resource = self.names[*index], ?action);
            let commit = async {
                match resource.as_database() {
                    Some(database) => database.commit_prepared().await,
                    None => Ok(()),
                }
            };
            let started = Instant::now();
            let bounded = timeout_at(deadline, AssertUnwindSafe(commit).catch_unwind());
            async move { (*index, Failure::of(bounded.await), started.elapsed()) }.instrument(span)
        });
        let results = join_all(commits).await;
        for (index, result, took) in results {
            self.report(&step(index), &result, took);
            match (result, &mut self.decision) {
                (Ok(()), Some(decision)) => decision.finished(index),
                (Ok(()), None) => {}
                (Err(failure), _) => {
                    tracing::error!(
                        request = %self.id, database = self.names[index], error = failure.text(),
                        "a decided transaction could not be committed yet; recovery will commit it"
                    );
                    self.pending.push(self.names[index].clone());
                }
            }
        }
        drop(resources);
        // Yield so that the tasks waiting for these connections run now, not after this request.
        tokio::task::yield_now().await;
    }
}
