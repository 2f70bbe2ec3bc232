//! Atomic commit of several databases: the setting, what is possible between which databases, and
//! the choice of the database that decides.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Duration;

use rocket::figment::Figment;
use rocket::serde::Deserialize;

use crate::db::{AtomicHandle, Recovery, setting};

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
    pub(super) recovery: Arc<Recovery>,
}

/// The roles of databases in one commit, by their indices in the settlement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Roles {
    /// At most one of them has written, or no atomic commit is possible.
    Separate,
    /// One decides, after the others have prepared.
    Atomic {
        decider: usize,
        participants: Vec<usize>,
    },
}

impl AtomicCommit {
    /// Finds out what the databases can do, creates their tables of decisions, and logs between
    /// which databases a commit is atomic.
    ///
    /// # Errors
    ///
    /// The pair for which `atomic_commit = "required"` cannot hold, with the reason.
    pub(super) async fn set_up(
        databases: Vec<Arc<AtomicHandle>>,
        mode: AtomicMode,
        settle_timeout: Duration,
    ) -> Result<Option<Self>, String> {
        if mode == AtomicMode::Off || databases.len() < 2 {
            return Ok(None);
        }
        AtomicHandle::set_up(&databases).await;
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
        let recovery = Arc::new(Recovery::new(databases.clone(), settle_timeout));
        Ok(Some(Self {
            databases,
            recovery,
        }))
    }

    pub(super) fn database(&self, database: TypeId) -> Option<&Arc<AtomicHandle>> {
        self.databases
            .iter()
            .find(|known| known.database == database)
    }

    /// Chooses the roles of the databases that have written. `None` stands for a database of
    /// another kind. `last`: the index of the database that was asked to commit last.
    pub(super) fn roles(&self, writers: &[(usize, Option<TypeId>)], last: Option<usize>) -> Roles {
        if writers.len() < 2 {
            return Roles::Separate;
        }
        let handle = |database: Option<TypeId>| database.and_then(|it| self.database(it));
        let prepares = |database| handle(database).is_some_and(|handle| handle.prepares().is_ok());
        let decides = |database| handle(database).is_some_and(|handle| handle.decider().is_ok());
        let cannot_prepare: Vec<usize> = (writers.iter())
            .filter(|(_, database)| !prepares(*database))
            .map(|(index, _)| *index)
            .collect();
        let decider = match cannot_prepare[..] {
            [] => {
                let wanted = writers.iter().find(|(index, _)| Some(*index) == last);
                wanted.or(writers.first())
            }
            [only] => writers.iter().find(|(index, _)| *index == only),
            _ => None,
        };
        match decider {
            Some((decider, database)) if decides(*database) => Roles::Atomic {
                decider: *decider,
                participants: (writers.iter().map(|(index, _)| *index))
                    .filter(|index| index != decider)
                    .collect(),
            },
            _ => Roles::Separate,
        }
    }
}

/// Checks whether a request that writes both databases can commit both or neither. The error names
/// the reason.
fn atomic_pair(one: &AtomicHandle, other: &AtomicHandle) -> Result<(), String> {
    match (one.prepares(), other.prepares()) {
        (Ok(()), _) if other.decider().is_ok() => Ok(()),
        (_, Ok(())) if one.decider().is_ok() => Ok(()),
        (Err(this), Err(that)) => Err(format!(
            "neither of them can prepare a transaction (`{}`: {this}; `{}`: {that})",
            one.name, other.name
        )),
        (Ok(()), _) => Err(cannot_decide(other)),
        (_, Ok(())) => Err(cannot_decide(one)),
    }
}

fn cannot_decide(handle: &AtomicHandle) -> String {
    let reason = handle.decider().err().unwrap_or_default();
    format!("`{}`: {reason}", handle.name)
}
