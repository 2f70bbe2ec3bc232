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
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rocket::futures::future::join_all;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Backend, PoolError};

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
    pub(crate) fn parse(text: &str) -> sqlx::Result<Self> {
        match text {
            "commit" => Ok(Self::Commit),
            "abort" => Ok(Self::Abort),
            _ => Err(sqlx::Error::Decode(
                "a decision is `commit` or `abort`".into(),
            )),
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

/// Returns an SQL expression that is true for a decision if its column `participants` names only
/// databases of `known`.
pub(crate) fn has_only_known_participants(known: &[DeciderId]) -> String {
    let unknown = known.iter().fold("participants".to_owned(), |rest, id| {
        format!("replace({rest}, '{id}', '')")
    });
    format!("replace({unknown}, ',', '') = ''")
}

/// Parses an id that a database stores.
pub(crate) fn parse_id<I: FromStr<Err = uuid::Error>>(id: &str) -> sqlx::Result<I> {
    id.parse()
        .map_err(|error: uuid::Error| sqlx::Error::Decode(Box::new(error)))
}

/// A prepared transaction that has not been finished.
#[derive(Debug, Clone)]
pub(crate) struct InDoubt {
    pub(crate) id: GlobalId,
    /// The time since it was prepared, by the clock of its server. If that clock was set back, the
    /// time until the moment at which it was prepared: it does not stay young for long either.
    pub(crate) age: Duration,
}

/// Atomic commit on one database, outside the sessions of requests. All methods use a connection
/// of their own, so they work while the pool is exhausted.
#[rocket::async_trait]
pub(crate) trait AtomicDatabase: Send + Sync + 'static {
    /// Returns the backend of the database.
    fn backend(&self) -> Backend;

    /// Returns the reason why the database cannot prepare transactions, or `None` if it can.
    async fn obstacle(&self) -> sqlx::Result<Option<&'static str>>;

    /// Creates the table of decisions, if it does not exist.
    async fn create_decisions(&self) -> Result<(), PoolError>;

    /// Returns the database as a decider, or `None` if it has no table of decisions.
    async fn decider(&self) -> sqlx::Result<Option<Decider>>;

    /// Returns the decision with this id. If there is none, decides to abort first: then no decider
    /// can decide to commit any more.
    ///
    /// On return, the decision survives a crash and a power cut of the decider.
    async fn decide_or_abort(&self, decider: &Decider, id: DecisionId) -> sqlx::Result<Decided>;

    /// Deletes decisions.
    async fn forget(&self, decider: &Decider, ids: &[DecisionId]) -> sqlx::Result<()>;

    /// Returns the decisions that are older than `age` and whose participants are all in `known`, in
    /// the order of their age, at most a few hundred. A decision to abort is left out as long as the
    /// transaction of a late decider may still be open.
    async fn old_decisions(
        &self,
        decider: &Decider,
        age: Duration,
        known: &[DeciderId],
    ) -> sqlx::Result<Vec<DecisionId>>;

    /// Returns the prepared transactions of this database that were begun by this library.
    async fn in_doubt(&self) -> sqlx::Result<Vec<InDoubt>>;

    /// Commits or rolls back a prepared transaction, unless another process is faster.
    async fn finish(&self, id: &GlobalId, decided: Decided) -> sqlx::Result<Finished>;
}

/// The result of finishing a prepared transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// Only Postgres prepares transactions.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
pub(crate) enum Finished {
    Done,
    /// Another session has finished it before.
    Elsewhere,
    /// Another session is finishing it now.
    InProgress,
}

/// An attached database, as a part of atomic commits.
pub(crate) struct AtomicHandle {
    pub(crate) database: TypeId,
    /// Its name in the configuration.
    pub(crate) name: &'static str,
    pub(crate) pool: Box<dyn AtomicDatabase>,
    abilities: Mutex<Abilities>,
}

/// What a database can do in an atomic commit.
struct Abilities {
    /// The id under which a decision names it as a participant: its own id as a decider.
    prepares: Result<DeciderId, Arc<str>>,
    decides: Result<Decider, Arc<str>>,
    /// `false` as long as an error prevents an answer.
    are_known: bool,
}

/// The longest time in which the table of decisions is created. Nothing else that recovery does may
/// wait for longer.
const LONGEST_MIGRATION: Duration = Duration::from_secs(5);

/// How much [`AtomicHandle::set_up`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetUp {
    /// Creates the table of decisions where it is missing.
    Create,
    /// Changes nothing. So only databases take part that have taken part before.
    Find,
}

impl AtomicHandle {
    pub(crate) fn new(database: TypeId, name: &'static str, pool: impl AtomicDatabase) -> Self {
        let not_yet: Arc<str> = "it was not set up".into();
        Self {
            database,
            name,
            pool: Box::new(pool),
            abilities: Mutex::new(Abilities {
                prepares: Err(Arc::clone(&not_yet)),
                decides: Err(not_yet),
                are_known: false,
            }),
        }
    }

    /// Finds out what each database can do. Databases for which that is known are not queried again.
    ///
    /// Returns `false` if an error has prevented an answer. The error is logged, and a later call
    /// tries again.
    pub(crate) async fn set_up(databases: &[Arc<Self>], set_up: SetUp) -> bool {
        if databases.iter().all(|database| database.are_known()) {
            return true;
        }
        let obstacles = databases.iter().map(|database| database.pool.obstacle());
        let obstacles = join_all(obstacles).await;
        // If no database can prepare, no decision is ever stored.
        let is_possible = match obstacles.iter().any(|it| matches!(it, Ok(None))) {
            false if obstacles.iter().any(Result::is_err) => None,
            is_possible => Some(is_possible),
        };
        let mut are_known = true;
        for (database, obstacle) in databases.iter().zip(obstacles) {
            if !database.are_known() {
                let abilities = database.find_abilities(obstacle, is_possible, set_up).await;
                are_known &= abilities.are_known;
                *database.abilities.lock() = abilities;
            }
        }
        are_known
    }

    async fn find_abilities(
        &self,
        obstacle: sqlx::Result<Option<&'static str>>,
        is_possible: Option<bool>,
        set_up: SetUp,
    ) -> Abilities {
        let mut are_known = is_possible.is_some();
        let is_replying = obstacle.is_ok();
        let known_before = self
            .prepares()
            .err()
            .into_iter()
            .chain(self.decider().err());
        let known_before: Vec<Arc<str>> = known_before.collect();
        let mut unknown = |what: &str, error: String| -> Arc<str> {
            let reason: Arc<str> = format!("{what}: {error}").into();
            // Not again with every attempt.
            if !known_before.contains(&reason) {
                tracing::warn!(
                    database = self.name,
                    "{reason}; until that changes, this database takes no part in atomic commits"
                );
            }
            are_known = false;
            reason
        };
        let obstacle = match obstacle {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(reason.into()),
            Err(error) => Err(unknown("it cannot take part now", error.to_string())),
        };
        let decides = match is_possible {
            _ if !is_replying => Err("it cannot take part now".into()),
            Some(true) => match self.find_decider(set_up).await {
                Ok(Some(decider)) => Ok(decider),
                Ok(None) => Err("it stores no decisions".into()),
                Err(error) => Err(unknown("it cannot store decisions", error)),
            },
            Some(false) | None => Err("no database can prepare".into()),
        };
        let id = decides.as_ref().map(|decider: &Decider| decider.id);
        Abilities {
            prepares: obstacle.and(id.map_err(Arc::clone)),
            decides,
            are_known,
        }
    }

    async fn find_decider(&self, set_up: SetUp) -> Result<Option<Decider>, String> {
        let found = self.pool.decider().await;
        if set_up == SetUp::Find || !matches!(found, Ok(None)) {
            // The role may lack the right to create tables, and needs none if they are there.
            return found.map_err(|error| error.to_string());
        }
        // Another program may keep the lock of migrations for long.
        let created = timeout(LONGEST_MIGRATION, self.pool.create_decisions()).await;
        created
            .map_err(|_| format!("its tables could not be created in {LONGEST_MIGRATION:?}"))?
            .map_err(|error| error.to_string())?;
        let found = self.pool.decider().await;
        found.map_err(|error| error.to_string())
    }

    fn are_known(&self) -> bool {
        self.abilities.lock().are_known
    }

    /// Returns the id of the database as a participant, or why it cannot prepare transactions.
    pub(crate) fn prepares(&self) -> Result<DeciderId, Arc<str>> {
        self.abilities.lock().prepares.clone()
    }

    /// Returns the database as a decider, or why it cannot be one.
    pub(crate) fn decider(&self) -> Result<Decider, Arc<str>> {
        self.abilities.lock().decides.clone()
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
