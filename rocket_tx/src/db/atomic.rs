//! Atomic commit over several databases: two-phase commit, in which one database decides.
//!
//! Every database that wrote, except one, *prepares* its transaction (PREPARE TRANSACTION): it can
//! then be committed later, also after a crash of the server. The remaining database is the
//! *decider*. It writes the decision in its own transaction and commits it. From that COMMIT on, the
//! prepared transactions must be committed; without it, they must be rolled back.
//!
//! A prepared transaction that has not been finished is *in doubt*. Any process can finish it,
//! because the decision is a row in the decider. If there is no row, the process first writes the
//! decision to abort. A decider that is late then fails at the primary key of the row.
//! <https://www.postgresql.org/docs/current/sql-prepare-transaction.html>

use std::any::TypeId;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocket::futures::future::join_all;
use uuid::Uuid;

use super::Error;

/// Identifies a decider. The id is a row of the database, so all processes use the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DeciderId(Uuid);

/// Identifies the decision for the transactions of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DecisionId(Uuid);

impl DecisionId {
    /// Returns a new id. Ids of later decisions are greater.
    pub(crate) fn mint() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for DeciderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for DecisionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

impl FromStr for DeciderId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// The name of a prepared transaction, as the server lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GlobalId {
    pub(crate) decider: DeciderId,
    pub(crate) decision: DecisionId,
    /// The number of the participant: two of them may be databases of one server.
    pub(crate) participant: usize,
}

impl GlobalId {
    /// Every name starts with this.
    pub(crate) const PREFIX: &str = "rtx:";
}

impl fmt::Display for GlobalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            decider,
            decision,
            participant,
        } = self;
        write!(f, "{}{decider}:{decision}:{participant}", Self::PREFIX)
    }
}

/// The text is not the name of a prepared transaction of this library.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ForeignName;

impl FromStr for GlobalId {
    type Err = ForeignName;

    fn from_str(text: &str) -> Result<Self, ForeignName> {
        let parse = || {
            let mut parts = text.strip_prefix(Self::PREFIX)?.split(':');
            Some(Self {
                decider: parts.next()?.parse().ok()?,
                decision: parts.next()?.parse().ok()?,
                participant: parts.next()?.parse().ok()?,
            })
        };
        // The parts may be written in several ways. Only one of them is ours.
        let id = parse().filter(|id| id.to_string() == text);
        id.ok_or(ForeignName)
    }
}

/// The decision to commit, as the decider stores it.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) id: DecisionId,
    /// The databases that have prepared, by their ids as deciders.
    pub(crate) participants: Vec<DeciderId>,
    /// The decider's table of decisions, as SQL names it.
    pub(crate) table: Arc<str>,
}

/// What a decider has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decided {
    Commit,
    Abort,
}

impl Decided {
    /// Parses the value of the column `decision`.
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "commit" => Self::Commit,
            _ => Self::Abort,
        }
    }
}

/// A database that can decide.
#[derive(Debug, Clone)]
pub(crate) struct Decider {
    pub(crate) id: DeciderId,
    /// Its table of decisions, as SQL names it.
    pub(crate) table: Arc<str>,
}

impl Decision {
    /// Returns the participants as the column stores them.
    pub(crate) fn participants(&self) -> String {
        let ids: Vec<String> = self.participants.iter().map(DeciderId::to_string).collect();
        ids.join(",")
    }
}

/// A decision that is stored for longer than a request needs it.
#[derive(Debug)]
pub(crate) struct OldDecision {
    pub(crate) id: DecisionId,
    pub(crate) participants: Vec<DeciderId>,
}

impl OldDecision {
    /// Parses the columns `id` and `participants`.
    pub(crate) fn parse(id: &str, participants: &str) -> sqlx::Result<Self> {
        let not_an_id = |error| sqlx::Error::Decode(Box::new(error));
        let participants = participants.split(',').filter(|id| !id.is_empty());
        let participants: Result<_, _> = participants.map(str::parse).collect();
        Ok(Self {
            id: id.parse().map_err(not_an_id)?,
            participants: participants.map_err(not_an_id)?,
        })
    }
}

/// A prepared transaction that has not been finished.
#[derive(Debug, Clone)]
pub(crate) struct InDoubt {
    pub(crate) id: GlobalId,
    /// The time since it was prepared, by the clock of its server.
    pub(crate) age: Duration,
}

/// Atomic commit on one database, outside the sessions of requests. All methods use a connection
/// of their own, so they work while the pool is exhausted.
#[rocket::async_trait]
pub(crate) trait AtomicDatabase: Send + Sync + 'static {
    /// Checks whether the database can prepare transactions.
    ///
    /// # Errors
    ///
    /// The reason why it cannot.
    async fn can_prepare(&self) -> Result<(), String>;

    /// Creates the table of decisions if it does not exist, and returns its owner.
    async fn set_up_decider(&self) -> Result<Decider, Error>;

    /// Returns the decision with this id. If there is none, decides to abort first: then no decider
    /// can decide to commit any more.
    ///
    /// On return, the decision survives a crash and a power cut of the decider.
    async fn decide_or_abort(&self, decider: &Decider, id: DecisionId) -> sqlx::Result<Decided>;

    /// Deletes decisions.
    async fn forget(&self, decider: &Decider, ids: &[DecisionId]) -> sqlx::Result<()>;

    /// Returns the decisions that are older than `age`, with their participants, in the order of
    /// their age, at most a few hundred. A decision to abort is left out as long as the transaction
    /// of a late decider may still be open.
    async fn old_decisions(
        &self,
        decider: &Decider,
        age: Duration,
    ) -> sqlx::Result<Vec<OldDecision>>;

    /// Returns the prepared transactions of this database that belong to one of these deciders,
    /// oldest first.
    async fn in_doubt(&self, deciders: &[DeciderId]) -> sqlx::Result<Vec<InDoubt>>;

    /// Commits or rolls back a prepared transaction. Succeeds also if another process has finished
    /// it.
    async fn finish(&self, id: &GlobalId, decided: Decided) -> sqlx::Result<()>;
}

/// An attached database, as a part of atomic commits.
pub(crate) struct AtomicHandle {
    pub(crate) database: TypeId,
    /// Its name in the configuration.
    pub(crate) name: &'static str,
    pub(crate) pool: Box<dyn AtomicDatabase>,
    /// What it can do. Set at launch, if the service has several databases.
    abilities: OnceLock<Abilities>,
}

/// What a database can do in an atomic commit. The error is the reason why it cannot.
struct Abilities {
    /// The id under which a decision names it as a participant: its own id as a decider.
    prepares: Result<DeciderId, String>,
    decides: Result<Decider, String>,
}

impl AtomicHandle {
    pub(crate) fn new(database: TypeId, name: &'static str, pool: impl AtomicDatabase) -> Self {
        Self {
            database,
            name,
            pool: Box::new(pool),
            abilities: OnceLock::new(),
        }
    }

    /// Finds out what each database can do, and creates the table of decisions in each database
    /// that may take part.
    pub(crate) async fn set_up(databases: &[Arc<Self>]) {
        let prepares = databases.iter().map(|database| database.pool.can_prepare());
        let prepares = join_all(prepares).await;
        let is_possible = prepares.iter().any(Result::is_ok);
        for (database, prepares) in databases.iter().zip(prepares) {
            let decides = match is_possible {
                true => {
                    let set_up = database.pool.set_up_decider().await;
                    set_up.map_err(|error| format!("it cannot store decisions: {error}"))
                }
                false => Err("no database can prepare".into()),
            };
            let id = decides.as_ref().map(|decider| decider.id);
            let prepares = prepares.and(id.map_err(String::clone));
            let _only_once = database.abilities.set(Abilities { prepares, decides });
        }
    }

    /// Returns the id of the database as a participant, or why it cannot prepare transactions.
    pub(crate) fn prepares(&self) -> Result<DeciderId, &str> {
        match self.abilities.get() {
            Some(Abilities { prepares, .. }) => prepares.as_ref().copied().map_err(String::as_str),
            None => Err("it was not set up"),
        }
    }

    /// Returns the database as a decider, or why it cannot be one.
    pub(crate) fn decider(&self) -> Result<&Decider, &str> {
        match self.abilities.get() {
            Some(Abilities { decides, .. }) => decides.as_ref().map_err(String::as_str),
            None => Err("it was not set up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_parsed() {
        let id = GlobalId {
            decider: DeciderId(Uuid::from_u128(7)),
            decision: DecisionId::mint(),
            participant: 1,
        };
        let name = id.to_string();
        assert_eq!(name.parse(), Ok(id));
        for foreign in [
            "",
            "rtx",
            "citus_0_1_2",
            &name[1..],
            &format!("{name}:2"),
            &name.replace(":1", ":+1"),
            &name.to_uppercase(),
        ] {
            assert_eq!(foreign.parse::<GlobalId>(), Err(ForeignName), "{foreign}");
        }
    }
}
