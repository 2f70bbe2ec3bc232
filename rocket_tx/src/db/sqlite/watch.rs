//! What only SQLite itself can say about the writer's transaction: whether it still stands, whether
//! its COMMIT would be refused, and whether the connection is as we made it.
//!
//! The connection lives on a thread of its own, with a queue before it; a statement that its caller
//! has given up may still be in the queue. So what must be known before the next statement is asked
//! in the queue too: a [`Question`] stands right before it, and nobody waits for its answer. It
//! costs no hop. The answer comes by way of a collation of ours, which SQLite calls on that thread.

use std::cmp::Ordering as Order;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rocket::futures::future::{BoxFuture, ready};
use rocket::futures::{FutureExt, StreamExt};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Execute, Executor, Sqlite};

use super::keys::{KeyProbe, Keys};
use super::sync::Wal;
use crate::db::{Ended, ending};

/// What the writer's callbacks and our transactions tell each other. One for each connection.
///
/// SQLite can end a transaction by itself (`OR ROLLBACK`, `RAISE(ROLLBACK)`, a full disk), and a
/// handler can by sending COMMIT or ROLLBACK. Later statements would then commit one by one.
/// <https://www.sqlite.org/lang_transaction.html>
#[derive(Default)]
pub(super) struct Watch {
    /// Set only between a question of ours and the COMMIT behind it; any other commit becomes a
    /// rollback.
    may_commit: AtomicBool,
    /// The transaction that we began is over.
    ended: AtomicBool,
    /// How the last question found the transaction.
    found: AtomicU8,
    /// How often its state was asked for.
    asked_for_state: AtomicU64,
    /// The last of those questions that found the connection as we made it.
    found_as_made: AtomicU64,
    /// What says whether the connection is as we made it, when it was just made.
    made: OnceLock<String>,
    /// Somebody has replaced a callback that the truth depends on.
    is_blind: AtomicBool,
    /// Somebody has replaced another callback.
    is_touched: AtomicBool,
    /// Nobody else can ask: a number that is drawn for each connection.
    secret: String,
    /// The log to be marked before a COMMIT that seems to write nothing.
    log: OnceLock<Arc<Wal>>,
    /// SQLite's `total_changes()` at the last question: a hint, as it misses some writes.
    changes: AtomicU64,
    keys: KeyProbe,
}

/// What is asked on the connection's own thread, right before the next statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Does our transaction stand? Then the COMMIT behind this may pass.
    Commit,
    /// The same if the connection is also as we made it.
    CommitIfAsMade,
    /// Does our transaction stand?
    Rollback,
}

impl Question {
    fn text(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::CommitIfAsMade => "commit-if-as-made",
            Self::Rollback => "rollback",
        }
    }
}

/// How a question found our transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The question never came to be asked.
    Nothing,
    /// It stands.
    Open,
    /// It is over.
    Ended,
}

const NOTHING: u8 = 0;
const OPEN: u8 = 1;
const ENDED: u8 = 2;

const COLLATION: &str = "rocket_tx_probe";

const ASK: &str = "SELECT $1 = ($2 || ' ' || total_changes()) COLLATE rocket_tx_probe";

/// What a request may leave behind that the next one would feel, in one text. What changes no result
/// is not among it. Nor is what can be changed outside a transaction
/// alone: that concerns writing, and a writer whose transaction was ended by a handler is closed.
///
/// A table under the name of a pragma would go before it. So they are looked for among the temporary
/// tables, all of which are in the text.
macro_rules! state {
    () => {
        "(SELECT group_concat(name || ' ' || file) FROM temp.pragma_database_list()) \
         || (SELECT ':' || count(*) || ifnull(group_concat(name), '') FROM temp.sqlite_schema) \
         || (SELECT ':' || query_only FROM temp.pragma_query_only()) \
         || (SELECT ':' || locking_mode FROM temp.pragma_locking_mode('main')) \
         || (SELECT ':' || synchronous FROM temp.pragma_synchronous()) \
         || (SELECT ':' || reverse_unordered_selects FROM temp.pragma_reverse_unordered_selects()) \
         || (SELECT ':' || short_column_names FROM temp.pragma_short_column_names()) \
         || (SELECT ':' || full_column_names FROM temp.pragma_full_column_names()) \
         || (SELECT ':' || count_changes FROM temp.pragma_count_changes()) \
         || (SELECT ':' || ignore_check_constraints FROM temp.pragma_ignore_check_constraints()) \
         || (SELECT ':' || recursive_triggers FROM temp.pragma_recursive_triggers()) \
         || (SELECT ':' || writable_schema FROM temp.pragma_writable_schema()) \
         || (SELECT ':' || legacy_alter_table FROM temp.pragma_legacy_alter_table()) \
         || (SELECT ':' || max_page_count FROM temp.pragma_max_page_count()) \
         || (SELECT ':' || trusted_schema FROM temp.pragma_trusted_schema()) \
         || (SELECT ':' || timeout FROM temp.pragma_busy_timeout()) \
         || (SELECT ':' || group_concat(name) FROM temp.pragma_collation_list()) \
         || ('a' LIKE 'A') || ('a' = 'A' COLLATE BINARY) || ('a' = 'A' COLLATE NOCASE) \
         || ('Ä' = 'ä' COLLATE NOCASE) || ('a ' = 'a' COLLATE RTRIM) || ('a' = 'A' COLLATE RTRIM)"
    };
}
pub(super) use state;

/// The same of the writer. What its cache keeps until COMMIT is what [`Wal::reserve`] reckons with.
macro_rules! writer_state {
    () => {
        concat!(
            state!(),
            " || (SELECT ':' || cache_size FROM temp.pragma_cache_size()) \
              || (SELECT ':' || cache_spill FROM temp.pragma_cache_spill())"
        )
    };
}

/// SQL, and behind it the question for the state, which the connection asks itself at once.
macro_rules! and_ask_for_state {
    ($sql:literal) => {
        concat!(
            $sql,
            "SELECT $1 = ($2 || ' ' || ",
            writer_state!(),
            ") COLLATE rocket_tx_probe"
        )
    };
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Commit,
    Rollback,
}

/// Belongs to a callback. SQLite has one of each kind; when somebody sets another, or removes it,
/// sqlx drops ours, and this with it.
struct Tripwire(Arc<Watch>, fn(&Watch) -> &AtomicBool);

impl Drop for Tripwire {
    fn drop(&mut self) {
        (self.1)(&self.0).store(true, Ordering::SeqCst);
    }
}

/// Operations of SQLite's machine between two calls of a progress handler that does nothing.
pub(super) const SELDOM: i32 = 1_000_000_000;

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            secret: format!("{:032x}", fastrand::u128(..)),
            ..Self::default()
        })
    }

    /// Makes the connection one that can be watched.
    pub(super) async fn install(
        self: &Arc<Self>,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<()> {
        let watch = Arc::clone(self);
        let tripwire = self.blinded();
        let mut handle = connection.lock_handle().await?;
        handle.create_collation(COLLATION, move |one, other| {
            let _belongs_to_it = &tripwire;
            watch.compare(one, other)
        })?;
        drop(handle);
        self.keys.install(connection).await?;
        let made = sqlx::query_scalar(concat!("SELECT ", writer_state!()))
            .fetch_one(&mut *connection)
            .await?;
        self.made.get_or_init(|| made);

        let mut handle = connection.lock_handle().await?;
        let (watch, tripwire) = (Arc::clone(self), self.blinded());
        handle.set_commit_hook(move || {
            let _belongs_to_it = &tripwire;
            watch.may_commit.swap(false, Ordering::SeqCst)
        });
        let (watch, tripwire) = (Arc::clone(self), self.blinded());
        handle.set_rollback_hook(move || {
            let _belongs_to_it = &tripwire;
            watch.ended.store(true, Ordering::SeqCst);
        });
        let tripwire = self.touched();
        handle.set_update_hook(move |_| {
            let _belongs_to_it = &tripwire;
        });
        let tripwire = self.touched();
        handle.set_progress_handler(SELDOM, move || {
            let _belongs_to_it = &tripwire;
            true
        });
        Ok(())
    }

    fn blinded(self: &Arc<Self>) -> Tripwire {
        Tripwire(Arc::clone(self), |watch| &watch.is_blind)
    }

    fn touched(self: &Arc<Self>) -> Tripwire {
        Tripwire(Arc::clone(self), |watch| &watch.is_touched)
    }

    /// The collation. It is called for keys of the probe, and to answer what we ask.
    fn compare(&self, one: &str, other: &str) -> Order {
        let asked = match (one == self.secret, other == self.secret) {
            (true, _) => Some(other),
            (_, true) => Some(one),
            _ => None,
        };
        match asked {
            Some(asked) => self.answer(asked),
            None => self.keys.note_look(),
        }
        one.cmp(other)
    }

    fn answer(&self, asked: &str) {
        let (question, rest) = asked.split_once(' ').unwrap_or((asked, ""));
        let stands = !self.ended.load(Ordering::SeqCst);
        let may_commit = if question == Question::Commit.text() {
            self.mark_log(rest);
            stands
        } else if question == Question::CommitIfAsMade.text() {
            stands && self.is_state_as_made()
        } else if question == Question::Rollback.text() {
            false
        } else {
            return self.compare_state(question, rest);
        };
        self.may_commit.store(may_commit, Ordering::SeqCst);
        let found = if stands { OPEN } else { ENDED };
        self.found.store(found, Ordering::SeqCst);
    }

    fn compare_state(&self, number: &str, state: &str) {
        if let Ok(number) = number.parse()
            && self.made.get().is_some_and(|made| made == state)
        {
            self.found_as_made.store(number, Ordering::SeqCst);
        }
    }

    /// Only where it may be of use: it costs two system calls, and two more after COMMIT.
    fn mark_log(&self, changes: &str) {
        let (Some(log), Ok(changes)) = (self.log.get(), changes.parse()) else {
            return;
        };
        if self.changes.swap(changes, Ordering::SeqCst) == changes || !log.is_mark_proved() {
            log.mark();
        }
    }

    /// Has `log` marked before each COMMIT that seems to write nothing.
    pub(super) fn mark_before_commit(&self, log: &Arc<Wal>) {
        self.log.get_or_init(|| Arc::clone(log));
    }

    /// Has the connection answer on its own thread before it does anything else.
    pub(super) fn ask(&self, connection: &mut SqliteConnection, question: Question) {
        self.found.store(NOTHING, Ordering::SeqCst);
        let asked = sqlx::query(ASK).bind(&self.secret).bind(question.text());
        send(connection, asked);
    }

    /// How the last question found our transaction; to be called when the statement behind it was
    /// answered.
    pub(super) fn found(&self) -> Found {
        match self.found.load(Ordering::SeqCst) {
            OPEN => Found::Open,
            ENDED => Found::Ended,
            _ => Found::Nothing,
        }
    }

    /// Asks, in the same way, whether the connection is as we made it. Holds until somebody uses the
    /// connection.
    pub(super) fn ask_for_state(&self, connection: &mut SqliteConnection) {
        let question = self.for_state(and_ask_for_state!(""));
        send(connection, question);
    }

    /// Ends the transaction, and asks for the state right behind it: the connection looks while its
    /// thread would wait for the next request. One hop, and nobody waits for the question.
    pub(super) async fn end(
        &self,
        connection: &mut SqliteConnection,
        end: End,
    ) -> sqlx::Result<()> {
        let sql = match end {
            End::Commit => and_ask_for_state!("COMMIT; "),
            End::Rollback => and_ask_for_state!("ROLLBACK; "),
        };
        first_answer(connection, self.for_state(sql)).await
    }

    fn for_state(&self, sql: &'static str) -> Query<'_, Sqlite, SqliteArguments> {
        // Numbered: the answer to an earlier question may still be to come, and this one is not sent
        // to a connection whose thread has ended.
        let number = self.asked_for_state.fetch_add(1, Ordering::SeqCst) + 1;
        sqlx::query(sql).bind(&self.secret).bind(number.to_string())
    }

    fn is_state_as_made(&self) -> bool {
        let asked = self.asked_for_state.load(Ordering::SeqCst);
        self.found_as_made.load(Ordering::SeqCst) == asked && asked > 0
    }

    /// Whether it is; to be called when a statement behind the question was answered.
    pub(super) fn is_as_made(&self) -> bool {
        self.is_state_as_made() && !self.is_touched() && !self.is_blind()
    }

    /// Nothing that this one says can be believed: its callbacks were replaced.
    pub(super) fn is_blind(&self) -> bool {
        self.is_blind.load(Ordering::SeqCst)
    }

    /// Callbacks were set that the next request must not find.
    pub(super) fn is_touched(&self) -> bool {
        self.is_touched.load(Ordering::SeqCst)
    }

    pub(super) fn begun(&self) {
        self.may_commit.store(false, Ordering::SeqCst);
        self.ended.store(false, Ordering::SeqCst);
    }

    /// Certain once a statement was answered that was sent after all others.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn forbid_commit(&self) {
        self.may_commit.store(false, Ordering::SeqCst);
    }

    /// Whether COMMIT would find a deferred foreign key broken. One hop.
    pub(super) async fn is_constraint_broken(
        &self,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<bool> {
        let is_broken = match self.keys.look(connection).await? {
            Keys::NotProbed => return Ok(false),
            Keys::Hold => false,
            Keys::Broken => true,
            Keys::Unknown => {
                self.is_touched.store(true, Ordering::SeqCst);
                return Err(sqlx::Error::WorkerCrashed);
            }
        };
        // The row that was deleted, and put back.
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(is_broken)
    }
}

impl ending::End for Arc<Watch> {
    /// The connection is about to be closed; only a handler that has replaced our hooks can have
    /// committed anything.
    fn end(&self) -> BoxFuture<'_, Ended> {
        let ended = match self.is_blind() {
            true => Ended::Before,
            false => Ended::RolledBack,
        };
        ready(ended).boxed()
    }
}

/// Puts a statement into the connection's queue, which is never full, and does not wait for what it
/// says.
pub(super) fn send<'q>(connection: &mut SqliteConnection, query: impl Execute<'q, Sqlite> + 'q) {
    let _under_way = connection.fetch_many(query).next().now_or_never();
}

/// Waits for the first of the statements in `query`, which returns no rows.
pub(super) async fn first_answer<'q>(
    connection: &mut SqliteConnection,
    query: impl Execute<'q, Sqlite> + 'q,
) -> sqlx::Result<()> {
    match connection.fetch_many(query).next().await {
        Some(answer) => answer.map(drop),
        None => Err(sqlx::Error::WorkerCrashed),
    }
}
