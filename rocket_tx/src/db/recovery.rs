//! Recovery: finishes prepared transactions whose process has died or lost its connection.
//!
//! Every process does the same work, at launch, after a failure of its own and at intervals. Two
//! processes may do it at the same time: both read the same decision.

use std::any::TypeId;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocket::futures::future::{join, join_all};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::ErrorClass;
use super::atomic::{
    AtomicHandle, Decided, Decider, DeciderId, DecisionId, Finished, InDoubt, SetUp,
};

/// The time between two passes, ±50 %, so that processes do not keep in step.
const INTERVAL: Duration = Duration::from_secs(30);

/// The age at which a decision is considered to be left over.
const OLD: Duration = Duration::from_secs(60);

/// How many decisions are deleted in one transaction.
const AT_ONCE: usize = 500;

/// The pause after a pass that left something which this service could finish. It doubles with
/// every such pass, up to [`INTERVAL`].
const SOON: Duration = Duration::from_secs(1);

/// How long a pass works on one database. The next pass, which works in another order, does the
/// rest. So decisions that take long do not keep others waiting.
const LONGEST_PASS: Duration = Duration::from_secs(20);

/// A prepared transaction that nobody has finished yet, although its request has ended.
#[derive(Debug, Clone)]
pub(crate) struct Unfinished {
    /// The database that has prepared.
    pub(crate) database: &'static str,
    /// The database that has decided, or will. `None`: no database of this service, so this service
    /// cannot finish it.
    pub(crate) decider: Option<&'static str>,
    pub(crate) prepared: InDoubt,
    seen: Instant,
}

impl Unfinished {
    /// Returns the time since it was prepared.
    pub(crate) fn age(&self) -> Duration {
        self.prepared.age + self.seen.elapsed()
    }
}

/// What a pass has left.
struct Pass {
    /// `false` if something is left that this service could finish.
    is_done: bool,
    /// The time after which a transaction becomes old enough to be finished.
    due: Option<Duration>,
}

/// What a pass has found in one or all databases.
#[derive(Default)]
struct Found {
    unfinished: Vec<Unfinished>,
    /// The time after which a transaction becomes old enough to be finished.
    due: Option<Duration>,
    /// The databases that did not reply. A pass sends them nothing more: each attempt takes seconds.
    silent: HashSet<TypeId>,
}

impl Found {
    fn due_in(&mut self, time: Duration) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }

    fn add(&mut self, other: Self) {
        self.unfinished.extend(other.unfinished);
        self.silent.extend(other.silent);
        if let Some(due) = other.due {
            self.due_in(due);
        }
    }
}

/// The recovery of one process.
pub(crate) struct Recovery {
    databases: Vec<Arc<AtomicHandle>>,
    set_up: SetUp,
    /// Younger transactions belong to requests that are being settled.
    min_age: Duration,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Decisions of this process whose transactions it could not finish, with the decider if the
    /// decision to commit is stored.
    urgent: HashMap<DecisionId, Option<TypeId>>,
    /// Decisions of this process that no prepared transaction needs any more, by decider.
    settled: Vec<(TypeId, DecisionId)>,
    unfinished: Vec<Unfinished>,
}

impl Recovery {
    /// `set_up`: how databases are set up that could not be set up before. `settle_timeout` limits
    /// the time for which a request needs its prepared transactions.
    pub(crate) fn new(
        databases: Vec<Arc<AtomicHandle>>,
        set_up: SetUp,
        settle_timeout: Duration,
    ) -> Self {
        const SLACK: Duration = Duration::from_secs(1);

        Self {
            databases,
            set_up,
            min_age: settle_timeout + SLACK,
            wake: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Finishes the transactions of this decision soon, whatever their age. No request may work on
    /// them any more. `decided_by`: the decider, if it has committed the decision to commit, which
    /// is then deleted later.
    pub(crate) fn resolve(&self, decision: DecisionId, decided_by: Option<TypeId>) {
        self.state.lock().urgent.insert(decision, decided_by);
        self.wake.notify_one();
    }

    /// Deletes the decision in a later pass: its transactions are finished.
    pub(crate) fn forget(&self, decider: TypeId, decision: DecisionId) {
        self.state.lock().settled.push((decider, decision));
    }

    /// Returns the prepared transactions that the last pass has seen and could not finish.
    pub(crate) fn unfinished(&self) -> Vec<Unfinished> {
        self.state.lock().unfinished.clone()
    }

    /// Runs passes until `shutdown`. Dropping the future leaves what is in doubt to another process
    /// or to the next launch.
    pub(crate) async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut soon = SOON;
        loop {
            let pass = tokio::select! {
                pass = self.pass() => pass,
                () = &mut shutdown => return,
            };
            let jitter = 0.5 + fastrand::f64();
            let pause = match pass.is_done {
                true => INTERVAL.mul_f64(jitter),
                false => soon.mul_f64(jitter),
            };
            let pause = pass.due.map_or(pause, |due| due.min(pause));
            soon = match pass.is_done {
                true => SOON,
                false => (soon * 2).min(INTERVAL),
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wake.notified() => {}
                () = &mut shutdown => return,
            }
        }
    }

    /// Finishes what can be finished now.
    async fn pass(&self) -> Pass {
        let urgent = std::mem::take(&mut self.state.lock().urgent);
        // Side by side, because each of them may not reply.
        let passes = self.databases.iter().map(|it| self.finish(it, &urgent));
        let mut found = Found::default();
        let mut is_complete = true;
        let set_up = AtomicHandle::set_up(&self.databases, self.set_up);
        let (are_set_up, results) = join(set_up, join_all(passes)).await;
        for (database, result) in self.databases.iter().zip(results) {
            match result {
                Ok(of_database) => found.add(of_database),
                Err(error) => {
                    is_complete = false;
                    // It cannot have become less.
                    let known = self.unfinished().into_iter();
                    let known = known.filter(|one| one.database == database.name);
                    found.unfinished.extend(known);
                    tracing::warn!(
                        database = database.name, %error,
                        "could not look for prepared transactions that are in doubt; trying again later"
                    );
                }
            }
        }
        let left: HashSet<DecisionId> = (found.unfinished.iter())
            .map(|unfinished| unfinished.prepared.id.decision)
            .collect();
        let is_done = {
            let mut state = self.state.lock();
            for (id, decided_by) in urgent {
                if !is_complete || left.contains(&id) {
                    state.urgent.insert(id, decided_by);
                } else if let Some(decider) = decided_by {
                    // All participants were seen, and none of them needs the decision any more.
                    state.settled.push((decider, id));
                }
            }
            let can_be_finished = found.unfinished.iter().any(|it| it.decider.is_some());
            state.unfinished = found.unfinished;
            are_set_up && state.urgent.is_empty() && !can_be_finished
        };
        let replying = self.databases.iter();
        let replying = replying.filter(|handle| !found.silent.contains(&handle.database));
        let cleans = replying.map(async |handle| {
            if let Err(error) = self.clean(handle, is_complete).await {
                tracing::debug!(
                    decider = handle.name, %error,
                    "could not delete decisions; trying again later"
                );
            }
        });
        join_all(cleans).await;
        Pass {
            is_done,
            due: found.due,
        }
    }

    /// Finishes the transactions that `database` has prepared.
    async fn finish(
        &self,
        database: &AtomicHandle,
        urgent: &HashMap<DecisionId, Option<TypeId>>,
    ) -> sqlx::Result<Found> {
        let mut found = Found::default();
        let started = Instant::now();
        let mut in_doubt = self.in_doubt(database).await?;
        fastrand::shuffle(&mut in_doubt);
        for prepared in in_doubt {
            let id = prepared.id;
            let young_for = self.min_age.saturating_sub(prepared.age);
            if !young_for.is_zero() && !urgent.contains_key(&id.decision) {
                found.due_in(young_for);
                continue;
            }
            let decider = self.decider(id.decider);
            let unfinished = Unfinished {
                database: database.name,
                decider: decider.as_ref().map(|(handle, _)| handle.name),
                prepared,
                seen: Instant::now(),
            };
            let Some((handle, decider)) = decider else {
                self.warn_of_unknown_decider(&unfinished);
                found.unfinished.push(unfinished);
                continue;
            };
            let is_silent = [handle.database, database.database]
                .iter()
                .any(|database| found.silent.contains(database));
            if is_silent || started.elapsed() > LONGEST_PASS {
                found.unfinished.push(unfinished);
                continue;
            }
            let (server, finished) = finish_one(database, handle, &decider, &unfinished).await;
            match finished {
                Ok(Finished::Done | Finished::Elsewhere) => continue,
                Ok(Finished::InProgress) => found.due_in(SOON),
                Err(error) => {
                    tracing::error!(
                        database = database.name, decider = handle.name, %id,
                        age_ms = unfinished.age().as_millis(), %error,
                        "a prepared transaction is in doubt and cannot be finished; it keeps its \
                         locks until the deciding database and its own can be reached"
                    );
                    if concerns_all(&error) {
                        found.silent.insert(server);
                    }
                }
            }
            found.unfinished.push(unfinished);
        }
        Ok(found)
    }

    /// Warns once about a prepared transaction that another service must finish.
    fn warn_of_unknown_decider(&self, unfinished: &Unfinished) {
        let name = unfinished.prepared.id;
        let known = &self.state.lock().unfinished;
        if known.iter().any(|known| known.prepared.id == name) {
            return;
        }
        tracing::warn!(
            database = unfinished.database, id = %name, age_ms = unfinished.age().as_millis(),
            "a prepared transaction is in doubt, and none of the attached databases decides about \
             it; it keeps its locks until a service with its deciding database runs"
        );
    }

    /// Returns the database with this id as a decider.
    fn decider(&self, id: DeciderId) -> Option<(&AtomicHandle, Decider)> {
        self.databases.iter().find_map(|handle| {
            let decider = handle.decider().ok()?;
            (decider.id == id).then_some((&**handle, decider))
        })
    }

    /// Returns what `database` has prepared, for any decider.
    async fn in_doubt(&self, database: &AtomicHandle) -> sqlx::Result<Vec<InDoubt>> {
        match database.prepares() {
            Ok(_) => database.pool.in_doubt().await,
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Deletes decisions that are not needed any more. Old decisions, of processes that have died,
    /// are deleted only if all prepared transactions are known.
    async fn clean(&self, handle: &AtomicHandle, is_complete: bool) -> sqlx::Result<()> {
        let Ok(decider) = handle.decider() else {
            return Ok(());
        };
        let is_ours = |settled: &mut (TypeId, DecisionId)| settled.0 == handle.database;
        let mut settled: Vec<_> = {
            let mut state = self.state.lock();
            state.settled.extract_if(.., is_ours).collect()
        };
        while !settled.is_empty() {
            let some = settled.len().saturating_sub(AT_ONCE);
            let ids: Vec<DecisionId> = settled[some..].iter().map(|(_, id)| *id).collect();
            if let Err(error) = handle.pool.forget(&decider, &ids).await {
                self.state.lock().settled.extend(settled);
                return Err(error);
            }
            settled.truncate(some);
        }
        if !is_complete {
            return Ok(());
        }
        // Another service may share this decider, and have other participants.
        let participants = self.databases.iter().filter_map(|it| it.prepares().ok());
        let known: Vec<DeciderId> = participants.collect();
        // The decisions are read before the prepared transactions: a decision is written after its
        // transactions were prepared.
        let old = handle.pool.old_decisions(&decider, OLD, &known).await?;
        if old.is_empty() {
            return Ok(());
        }
        let mut needed = HashSet::new();
        for database in &self.databases {
            let in_doubt = self.in_doubt(database).await?;
            needed.extend(in_doubt.iter().map(|prepared| prepared.id.decision));
        }
        let left_over: Vec<DecisionId> = (old.into_iter())
            .filter(|decision| !needed.contains(decision))
            .collect();
        match left_over.is_empty() {
            true => Ok(()),
            false => handle.pool.forget(&decider, &left_over).await,
        }
    }
}

/// Asks for the decision, and commits or rolls back accordingly. Also returns the database that
/// was used last, to which an error belongs.
async fn finish_one(
    database: &AtomicHandle,
    handle: &AtomicHandle,
    decider: &Decider,
    unfinished: &Unfinished,
) -> (TypeId, sqlx::Result<Finished>) {
    let id = unfinished.prepared.id;
    let decided = match handle.pool.decide_or_abort(decider, id.decision).await {
        Ok(decided) => decided,
        Err(error) => return (handle.database, Err(error)),
    };
    let finished = database.pool.finish(&id, decided).await;
    if let Ok(Finished::Done) = finished {
        tracing::warn!(
            database = database.name, decider = handle.name, %id,
            age_ms = unfinished.age().as_millis(), committed = decided == Decided::Commit,
            "finished a prepared transaction that was in doubt"
        );
    }
    (database.database, finished)
}

/// Returns `true` if other statements to the same database would fail too.
fn concerns_all(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    match ErrorClass::of(error) {
        ErrorClass::Lost | ErrorClass::Unreachable => true,
        // lock_not_available: the decider of this transaction still has its row locked.
        ErrorClass::Busy => code.as_deref() != Some("55P03"),
        _ => false,
    }
}
