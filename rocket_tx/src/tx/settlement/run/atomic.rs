//! Commits several databases: all of them, or none.
//!
//! 1. Every participant prepares its transaction.
//! 2. The decider commits its transaction together with the decision. From then on, everything is
//!    committed, also if this process dies.
//! 3. Every participant commits what it has prepared. If one cannot be reached, recovery does that
//!    later, in this or in another process.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::{Call, Failure, Run};
use crate::db::{Decided, Decision, DecisionId, GlobalId};
use crate::tx::failure::Error;
use crate::tx::monitor::Step;
use crate::tx::registry::Resource;
use crate::tx::settlement::atomic::{NotAtomic, Roles, Writer};
use crate::tx::settlement::begun_decision::BegunDecision;
use crate::tx::verdict::{Action, Outcome};

/// How often a decision without a reply is queried. After an error of the disk, SQLite can refuse
/// the first query while it still rolls back.
const QUERIES: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(50))
    .with_max_times(2);

impl Run<'_, '_> {
    /// Returns the databases that may have written.
    fn writers(&mut self) -> Vec<Writer> {
        let databases = self.resources[..self.databases].iter_mut().enumerate();
        let writer = |(index, resource): (usize, &mut Option<Box<dyn Resource>>)| {
            let database = match resource.as_mut()?.as_database() {
                Some(database) if !database.may_have_written() => return None,
                database => database.map(|database| database.database()),
            };
            Some(Writer { index, database })
        };
        databases.filter_map(writer).collect()
    }

    /// Commits all databases. Those that have written nothing commit first: if one of them refuses,
    /// everything is rolled back.
    pub(super) async fn commit_databases(&mut self) -> Result<(), Error> {
        if self.databases < 2 {
            return self.commit_each(&[0][..self.databases]).await;
        }
        let writers = self.writers();
        let is_writer = |index: &usize| writers.iter().any(|writer| writer.index == *index);
        self.readers = (0..self.databases)
            .filter(|index| !is_writer(index))
            .collect();
        let mut order = self.readers.clone();
        let atomic = self.settings.atomic.get();
        let roles = match atomic {
            Some(atomic) => atomic.roles(&writers, self.last),
            None => Ok(None),
        };
        let roles = roles.map_err(|NotAtomic| {
            let writers: Vec<usize> = writers.iter().map(|writer| writer.index).collect();
            Error::NotAtomic(self.names_of(&writers))
        })?;
        let (Some(atomic), Some(roles)) = (atomic, roles) else {
            order.extend(writers.iter().map(|writer| writer.index));
            if let Some(last) = self.last.filter(is_writer) {
                order.retain(|index| *index != last);
                order.push(last);
            }
            return self.commit_each(&order).await;
        };
        self.commit_each(&order).await?;
        let mut begun = BegunDecision::new(Arc::clone(&roles.handle), Arc::clone(&atomic.recovery));
        // Boxed: the future of a request that writes one database stays small.
        let result = Box::pin(self.commit_atomically(&roles, &mut begun)).await;
        // A rollback that follows finishes what is prepared.
        self.decision = Some(begun);
        result
    }

    async fn commit_atomically(
        &mut self,
        roles: &Roles,
        begun: &mut BegunDecision,
    ) -> Result<(), Error> {
        let participants: Vec<usize> = roles.participants.iter().map(|(index, _)| *index).collect();
        for (participant, &index) in participants.iter().enumerate() {
            let name = GlobalId {
                decider: roles.decider.id,
                decision: begun.id(),
                participant,
            };
            self.prepare_transaction(index, &name, begun).await?;
        }
        if let Err(error) = self.decide(roles, begun.id()).await {
            if error.outcome() == Outcome::Unknown {
                self.leave_in_doubt(&participants);
            }
            return Err(error);
        }
        begun.decided();
        self.committed.push(roles.index);
        // A power cut must not undo the decision after a participant has committed.
        if let Err(error) = self.wait_until_durable().await {
            self.leave_in_doubt(&participants);
            return Err(error);
        }
        self.committed.extend(&participants);
        self.commit_prepared(&participants, begun).await;
        Ok(())
    }

    /// Prepares the transaction of the database at `index`.
    async fn prepare_transaction(
        &mut self,
        index: usize,
        name: &GlobalId,
        begun: &mut BegunDecision,
    ) -> Result<(), Error> {
        begun.preparing();
        let prepare = Call::PrepareTransaction(name);
        let result = self.call(index, prepare, self.deadlines.commit).await;
        match &result {
            Ok(()) => begun.prepared(index),
            // Without a reply, it may be prepared.
            Err(Failure::Panicked | Failure::TimedOut) => {}
            Err(Failure::Error(Error::ConnectionLost(_))) => {}
            Err(Failure::Error(_)) => begun.not_prepared(),
        }
        result.map_err(|failure| self.error_of(failure))
    }

    /// Commits the decider. If its reply is lost, queries the decision.
    async fn decide(&mut self, roles: &Roles, id: DecisionId) -> Result<(), Error> {
        let Roles { index, handle, .. } = roles;
        let decision = Decision {
            id,
            participants: roles.participants.iter().map(|(_, id)| *id).collect(),
            table: Arc::clone(&roles.decider.table),
        };
        let decide = Call::Decide(&decision);
        let failure = match self.call(*index, decide, self.deadlines.commit).await {
            Ok(()) => return Ok(()),
            Err(Failure::Error(error)) if error.outcome() != Outcome::Unknown => return Err(error),
            Err(failure) => failure,
        };
        tracing::warn!(
            request = %self.id, decider = handle.name, decision = %id, error = failure.text(),
            "the decision to commit got no reply; querying it"
        );
        // A SQLite file is queried with the connection that this transaction may still hold.
        drop(self.resources[*index].take());
        let query = || handle.pool.decide_or_abort(&roles.decider, id);
        let querying = query.retry(QUERIES);
        let Ok(Ok(decided)) = timeout_at(self.deadlines.whole, querying).await else {
            tracing::error!(
                request = %self.id, decider = handle.name, decision = %id,
                "the decision cannot be queried; the prepared transactions stay in doubt until \
                 recovery can query it"
            );
            let participants = roles
                .participants
                .iter()
                .map(|(participant, _)| *participant);
            let all: Vec<usize> = participants.chain([*index]).collect();
            return Err(Error::Unknown(self.names_of(&all)));
        };
        self.unknown.retain(|unknown| unknown != index);
        match decided {
            Decided::Commit => Ok(()),
            Decided::Abort => Err(Error::DecidedToAbort),
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
    async fn commit_prepared(&mut self, participants: &[usize], begun: &mut BegunDecision) {
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
            match result {
                Ok(()) => begun.finished(index),
                Err(failure) => {
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
