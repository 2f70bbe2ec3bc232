//! Atomic commit of several databases: the setting, what is possible between which databases, and
//! the choice of the database that decides.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Duration;

use rocket::figment::Figment;
use rocket::serde::Deserialize;

use crate::db::{AtomicHandle, Decider, DeciderId, Recovery, SetUp, setting};

/// `atomic_commit` in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(crate = "rocket::serde", rename_all = "lowercase")]
pub(super) enum AtomicMode {
    /// Where it is possible.
    #[default]
    Auto,
    /// The launch fails if it is not possible for all databases.
    Required,
    /// Databases commit one after the other.
    Off,
}

impl AtomicMode {
    pub(super) fn of(figment: &Figment) -> Result<Self, Box<rocket::figment::Error>> {
        Ok(setting(figment, "atomic_commit")?.unwrap_or_default())
    }
}

/// The databases of a service, as parts of atomic commits.
pub(super) struct AtomicCommit {
    databases: Vec<Arc<AtomicHandle>>,
    mode: AtomicMode,
    pub(super) recovery: Arc<Recovery>,
}

/// A database that may have written in one request.
pub(super) struct Writer {
    /// Its index in the settlement.
    pub(super) index: usize,
    /// `None`: a database that is not one of this library.
    pub(super) database: Option<TypeId>,
}

/// The roles of databases in one atomic commit.
pub(super) struct Roles {
    /// The index of the decider in the settlement.
    pub(super) index: usize,
    pub(super) handle: Arc<AtomicHandle>,
    pub(super) decider: Decider,
    /// The databases that prepare, by their indices in the settlement, with their ids.
    pub(super) participants: Vec<(usize, DeciderId)>,
}

/// No atomic commit is possible between the databases that a request has written.
pub(super) struct NotAtomic;

impl AtomicCommit {
    /// Finds out what the databases can do, creates their tables of decisions, and logs between
    /// which databases a commit is atomic. Returns `None` if it is not needed.
    ///
    /// If it is turned off, nothing is created. But recovery finishes what was prepared before, or
    /// what other processes prepare.
    ///
    /// # Errors
    ///
    /// The pair for which `atomic_commit = "required"` cannot hold, with the reason.
    pub(super) async fn set_up(
        databases: Vec<Arc<AtomicHandle>>,
        mode: AtomicMode,
        settle_timeout: Duration,
    ) -> Result<Option<Self>, String> {
        if databases.len() < 2 {
            // A request may also write a database that is a resource of the service.
            let is_required = mode == AtomicMode::Required;
            return Ok(is_required.then(|| Self {
                databases: Vec::new(),
                mode,
                recovery: Arc::new(Recovery::new(Vec::new(), SetUp::Find, settle_timeout)),
            }));
        }
        let set_up = match mode {
            AtomicMode::Off => SetUp::Find,
            AtomicMode::Auto | AtomicMode::Required => SetUp::Create,
        };
        let are_known = AtomicHandle::set_up(&databases, set_up).await;
        if mode == AtomicMode::Off {
            let has_decided = databases.iter().any(|database| database.decider().is_ok());
            if are_known && !has_decided {
                return Ok(None);
            }
        } else {
            log_pairs(&databases, mode)?;
        }
        let recovery = Recovery::new(databases.clone(), set_up, settle_timeout);
        Ok(Some(Self {
            databases,
            mode,
            recovery: Arc::new(recovery),
        }))
    }

    /// Chooses the roles of the databases that have written. Returns `None` if they commit one after
    /// the other: at most one of them has written, or no atomic commit is possible. `last`: the index
    /// of the database that was asked to commit last.
    ///
    /// # Errors
    ///
    /// [`NotAtomic`] if no atomic commit is possible and `atomic_commit` is `"required"`.
    pub(super) fn roles(
        &self,
        writers: &[Writer],
        last: Option<usize>,
    ) -> Result<Option<Roles>, NotAtomic> {
        if writers.len() < 2 || self.mode == AtomicMode::Off {
            return Ok(None);
        }
        match self.roles_of_all(writers, last) {
            None if self.mode == AtomicMode::Required => Err(NotAtomic),
            roles => Ok(roles),
        }
    }

    fn roles_of_all(&self, writers: &[Writer], last: Option<usize>) -> Option<Roles> {
        let handle = |writer: &Writer| {
            let mut databases = self.databases.iter();
            databases.find(|known| writer.database == Some(known.database))
        };
        let prepares = |writer: &Writer| handle(writer)?.prepares().ok();
        let mut without = writers.iter().filter(|writer| prepares(writer).is_none());
        let decider = match (without.next(), without.next()) {
            (None, _) => {
                let wanted = writers.iter().find(|writer| Some(writer.index) == last);
                wanted.or(writers.first())?
            }
            (Some(only), None) => only,
            (Some(_), Some(_)) => return None,
        };
        let participants = writers.iter().filter(|it| it.index != decider.index);
        let participants = participants.map(|writer| Some((writer.index, prepares(writer)?)));
        let participants: Option<Vec<_>> = participants.collect();
        let handle = handle(decider)?;
        Some(Roles {
            index: decider.index,
            handle: Arc::clone(handle),
            decider: handle.decider().ok()?,
            participants: participants?,
        })
    }
}

/// Logs between which databases a commit is atomic.
///
/// # Errors
///
/// The pair for which `atomic_commit = "required"` cannot hold, with the reason.
fn log_pairs(databases: &[Arc<AtomicHandle>], mode: AtomicMode) -> Result<(), String> {
    for (index, one) in databases.iter().enumerate() {
        for other in &databases[index + 1..] {
            match atomic_pair(one, other) {
                Ok(()) => tracing::info!(
                    "a request that writes `{}` and `{}` commits both or neither",
                    one.name,
                    other.name
                ),
                Err(reason) if mode == AtomicMode::Required => {
                    return Err(format!(
                        "`atomic_commit` is \"required\", but a request that writes `{}` and \
                         `{}` cannot commit both or neither: {reason}; correct that, or set \
                         `atomic_commit` to \"auto\"",
                        one.name, other.name
                    ));
                }
                Err(reason) => tracing::info!(
                    "a request that writes `{}` and `{}` commits them one after the other: \
                     {reason}",
                    one.name,
                    other.name
                ),
            }
        }
    }
    Ok(())
}

/// Checks whether a request that writes both databases can commit both or neither. The error names
/// the reason.
fn atomic_pair(one: &AtomicHandle, other: &AtomicHandle) -> Result<(), String> {
    match (one.prepares(), other.prepares()) {
        (Ok(_), _) if other.decider().is_ok() => Ok(()),
        (_, Ok(_)) if one.decider().is_ok() => Ok(()),
        (Err(this), Err(that)) => Err(format!(
            "neither of them can prepare a transaction (`{}`: {this}; `{}`: {that})",
            one.name, other.name
        )),
        (Ok(_), _) => Err(cannot_decide(other)),
        (_, Ok(_)) => Err(cannot_decide(one)),
    }
}

fn cannot_decide(handle: &AtomicHandle) -> String {
    match handle.decider() {
        Ok(_) => String::new(),
        Err(reason) => format!("`{}`: {reason}", handle.name),
    }
}
