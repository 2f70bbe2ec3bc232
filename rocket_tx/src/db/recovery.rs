//! Recovery: finishes prepared transactions whose process has died or lost its connection.
//!
//! Every process does the same work, at launch, after a failure of its own and at intervals. Two
//! processes may do it at the same time: both read the same decision.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::atomic::{AtomicHandle, Decided, DecisionId, InDoubt};

/// The time between two passes, ±50 %, so that processes do not keep in step.
const INTERVAL: Duration = Duration::from_secs(30);

/// The age at which a decision is considered to be left over.
const OLD: Duration = Duration::from_secs(60);

/// A prepared transaction that recovery could not finish.
#[derive(Debug, Clone)]
pub(crate) struct Unfinished {
    /// The database that has prepared.
    pub(crate) database: &'static str,
    /// The database that has decided, or will.
    pub(crate) decider: &'static str,
    pub(crate) prepared: InDoubt,
}

/// The recovery of one process.
pub(crate) struct Recovery {
    databases: Vec<Arc<AtomicHandle>>,
    /// Younger transactions belong to requests that are being settled.
    min_age: Duration,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Decisions of this process whose transactions it could not finish.
    urgent: HashSet<DecisionId>,
    /// Decisions of this process that no prepared transaction needs any more, by decider.
    settled: Vec<(usize, DecisionId)>,
    unfinished: Vec<Unfinished>,
}

impl Recovery {
    /// `settle_timeout` limits the time for which a request needs its prepared transactions.
    pub(crate) fn new(databases: Vec<Arc<AtomicHandle>>, settle_timeout: Duration) -> Self {
        const SLACK: Duration = Duration::from_secs(5);

        Self {
            databases,
            min_age: settle_timeout + SLACK,
            wake: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Finishes the transactions of this decision soon, whatever their age.
    pub(crate) fn resolve(&self, decision: DecisionId) {
        self.state.lock().urgent.insert(decision);
        self.wake.notify_one();
    }

    /// Deletes the decision in the next pass: its transactions are finished.
    pub(crate) fn forget(&self, decider: &AtomicHandle, decision: DecisionId) {
        let mut databases = self.databases.iter();
        if let Some(index) = databases.position(|known| known.database == decider.database) {
            self.state.lock().settled.push((index, decision));
        }
    }

    /// Returns the prepared transactions that the last pass has seen and not finished.
    pub(crate) fn unfinished(&self) -> Vec<Unfinished> {
        self.state.lock().unfinished.clone()
    }

    /// Runs passes until `shutdown`. Dropping the future leaves what is in doubt to another process
    /// or the next launch.
    pub(crate) async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = self.pass() => {}
                () = &mut shutdown => return,
            }
            let pause = INTERVAL.mul_f64(0.5 + fastrand::f64());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wake.notified() => {}
                () = &mut shutdown => return,
            }
        }
    }

    /// Finishes what can be finished now.
    pub(crate) async fn pass(&self) {
        let urgent = std::mem::take(&mut self.state.lock().urgent);
        let mut unfinished = Vec::new();
        let mut is_complete = true;
        for decider in &self.databases {
            for database in &self.databases {
                match self.finish(decider, database, &urgent).await {
                    Ok(left) => unfinished.extend(left),
                    Err(error) => {
                        is_complete = false;
                        tracing::warn!(
                            database = database.name, decider = decider.name, %error,
                            "could not look for prepared transactions in doubt; trying again later"
                        );
                    }
                }
            }
        }
        let again = unfinished.iter().map(|left| left.prepared.id.decision);
        {
            let mut state = self.state.lock();
            state.urgent.extend(again.filter(|id| urgent.contains(id)));
            if !is_complete {
                state.urgent.extend(&urgent);
            }
            state.unfinished = unfinished;
        }
        for index in 0..self.databases.len() {
            if let Err(error) = self.clean(index, is_complete).await {
                tracing::debug!(
                    decider = self.databases[index].name, %error,
                    "could not delete decisions; trying again later"
                );
            }
        }
    }

    /// Finishes the transactions of `decider` in `database`. Returns those that are left.
    async fn finish(
        &self,
        decider: &AtomicHandle,
        database: &AtomicHandle,
        urgent: &HashSet<DecisionId>,
    ) -> sqlx::Result<Vec<Unfinished>> {
        let (Ok(decides), Ok(())) = (decider.decider(), database.prepares()) else {
            return Ok(Vec::new());
        };
        let mut left = Vec::new();
        for prepared in database.pool.in_doubt(decides.id).await? {
            let decision = prepared.id.decision;
            if prepared.age < self.min_age && !urgent.contains(&decision) {
                continue;
            }
            let finished = async {
                let decided = decider.pool.decide_or_abort(decides, decision).await?;
                database.pool.finish(&prepared.id, decided).await?;
                Ok::<_, sqlx::Error>(decided)
            };
            match finished.await {
                Ok(decided) => tracing::warn!(
                    database = database.name, decider = decider.name, id = %prepared.id,
                    age_ms = prepared.age.as_millis(), committed = decided == Decided::Commit,
                    "finished a prepared transaction that was in doubt"
                ),
                Err(error) => {
                    tracing::error!(
                        database = database.name, decider = decider.name, id = %prepared.id,
                        age_ms = prepared.age.as_millis(), %error,
                        "a prepared transaction is in doubt, because its decision is not known; \
                         it keeps its locks until the decider can be queried"
                    );
                    left.push(Unfinished {
                        database: database.name,
                        decider: decider.name,
                        prepared,
                    });
                }
            }
        }
        Ok(left)
    }

    /// Deletes decisions that are not needed any more. Old decisions, of processes that have died,
    /// are deleted only if all prepared transactions are known.
    async fn clean(&self, index: usize, is_complete: bool) -> sqlx::Result<()> {
        let handle = &self.databases[index];
        let Ok(decider) = handle.decider() else {
            return Ok(());
        };
        let is_ours = |settled: &mut (usize, DecisionId)| settled.0 == index;
        let settled: Vec<_> = {
            let mut state = self.state.lock();
            state.settled.extract_if(.., is_ours).collect()
        };
        let ids: Vec<DecisionId> = settled.iter().map(|(_, id)| *id).collect();
        if !ids.is_empty()
            && let Err(error) = handle.pool.forget(decider, &ids).await
        {
            self.state.lock().settled.extend(settled);
            return Err(error);
        }
        if !is_complete {
            return Ok(());
        }
        // Read before the prepared transactions are listed: a decision is written after them.
        let old = handle.pool.old_decisions(decider, OLD).await?;
        if old.is_empty() {
            return Ok(());
        }
        let mut needed = HashSet::new();
        for database in &self.databases {
            if database.prepares().is_ok() {
                let in_doubt = database.pool.in_doubt(decider.id).await?;
                needed.extend(in_doubt.iter().map(|prepared| prepared.id.decision));
            }
        }
        let is_known = |name: &str| self.databases.iter().any(|known| known.name == name);
        let left_over = old.into_iter().filter(|(id, participants)| {
            let mut participants = participants.split(',').filter(|name| !name.is_empty());
            !needed.contains(id) && participants.all(is_known)
        });
        let ids: Vec<DecisionId> = left_over.map(|(id, _)| id).collect();
        match ids.is_empty() {
            true => Ok(()),
            false => handle.pool.forget(decider, &ids).await,
        }
    }
}
