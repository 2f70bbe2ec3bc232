//! What only SQLite itself can report about the writer: whether its transaction is still open,
//! whether COMMIT would be refused, and whether the connection is unchanged since it was opened.
//!
//! sqlx runs the connection on a separate thread, with a queue of statements in front of it. A
//! statement that its caller has abandoned may still be in the queue. So a check that must come
//! right before a statement must go through the queue too.
//!
//! Such a check is a [`Question`]: a statement that is queued right before the statement that
//! depends on it. SQLite runs the question on the connection's thread and calls a collation of ours
//! there. The collation answers the question and stores the answer in the [`Watch`]. No task waits
//! for the question, so it costs no hop. (A hop is a message to that thread and its reply.)

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

/// The state that the callbacks on the writer's connection share with the code that begins and ends
/// transactions. Each connection has its own.
///
/// SQLite itself can end a transaction (`OR ROLLBACK`, `RAISE(ROLLBACK)`, a full disk), and a
/// handler can end it with COMMIT or ROLLBACK. Without a hook, each later statement would then be
/// committed on its own.
/// <https://www.sqlite.org/lang_transaction.html>
#[derive(Default)]
pub(super) struct Watch {
    /// Whether the next COMMIT may pass. Set only between a question and the COMMIT after it. The
    /// commit hook turns any other commit into a rollback.
    may_commit: AtomicBool,
    /// The transaction that we began has ended.
    ended: AtomicBool,
    /// The answer to the last question: [`NOTHING`], [`OPEN`] or [`ENDED`].
    found: AtomicU8,
    /// The number of state checks that were queued.
    state_checks: AtomicU64,
    /// The number of the last state check that found the connection unchanged since it was opened.
    unchanged_at: AtomicU64,
    /// The state of the connection when it was opened, as a text.
    initial_state: OnceLock<String>,
    /// A handler has replaced a callback that the correctness of this type depends on: a commit or
    /// rollback hook, or the collation.
    are_hooks_replaced: Arc<AtomicBool>,
    /// A handler has replaced another callback, or has changed the table of the foreign-key probe.
    is_altered: Arc<AtomicBool>,
    /// A random number of this connection. A handler does not know the number, so it cannot ask a
    /// question.
    secret: String,
    /// The log to mark before a COMMIT that seems to write nothing. See [`mark`](super::mark).
    log: OnceLock<Arc<Wal>>,
    /// SQLite's `total_changes()` at the last question. This is only a hint, because it misses some
    /// writes.
    changes: AtomicU64,
    keys: KeyProbe,
}

/// A check that runs on the connection's own thread, right before the next statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Is our transaction still open? If so, the COMMIT after this question may pass.
    Commit,
    /// Is our transaction still open? If so, the COMMIT after this question may pass, but only if
    /// the connection is also unchanged since it was opened.
    CommitIfUnchanged,
    /// Is our transaction still open? No COMMIT may pass.
    Rollback,
}

impl Question {
    fn text(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::CommitIfUnchanged => "commit-if-unchanged",
            Self::Rollback => "rollback",
        }
    }
}

/// The state in which the last question found our transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The question did not run.
    Nothing,
    /// The transaction is open.
    Open,
    /// The transaction has ended.
    Ended,
}

// The variants of `Found`, as numbers.
const NOTHING: u8 = 0;
const OPEN: u8 = 1;
const ENDED: u8 = 2;

const COLLATION: &str = "rocket_tx_probe";

/// A question. `$1` is the secret and `$2` the text of the question. SQLite compares the two by our
/// collation.
const ASK: &str = "SELECT $1 = ($2 || ' ' || total_changes()) COLLATE rocket_tx_probe";

/// SQL for the state of a connection, as one text: all that a request may change on the connection
/// and that would affect the next request.
///
/// Two kinds of settings are left out. Some change no result. Others can be changed only outside a
/// transaction, and matter only for writes. To change those on the writer, a handler must end its
/// transaction, and then the writer's connection is closed.
///
/// A table with the name of a pragma would be read instead of the pragma. Therefore the pragmas are
/// read in the schema `temp`, and all temporary tables are part of the text.
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

/// SQL for the state of the writer's connection: `state!` and the settings that limit the cache,
/// because [`Wal::reserve`] relies on the size of the cache.
macro_rules! writer_state {
    () => {
        concat!(
            state!(),
            " || (SELECT ':' || cache_size FROM temp.pragma_cache_size()) \
              || (SELECT ':' || cache_spill FROM temp.pragma_cache_spill())"
        )
    };
}

/// SQL followed by the state check, which the connection runs right after it.
macro_rules! with_state_check {
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

/// Sets a flag when it is dropped. A callback of ours owns the `DropFlag`. SQLite has one callback of
/// each kind. If a handler replaces or removes our callback, sqlx drops our callback and the
/// `DropFlag` with it.
pub(super) struct DropFlag(pub(super) Arc<AtomicBool>);

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The number of operations of SQLite's virtual machine between two calls of our progress handler.
/// The number is high, because the handler does nothing.
pub(super) const PROGRESS_INTERVAL: i32 = 1_000_000_000;

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            secret: format!("{:032x}", fastrand::u128(..)),
            ..Self::default()
        })
    }

    /// Installs our callbacks on the connection, and records its state.
    pub(super) async fn install(
        self: &Arc<Self>,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<()> {
        let watch = Arc::clone(self);
        let flag = self.hooks_flag();
        let mut handle = connection.lock_handle().await?;
        handle.create_collation(COLLATION, move |one, other| {
            let _owned = &flag;
            watch.compare(one, other)
        })?;
        drop(handle);
        self.keys.install(connection).await?;
        let state = sqlx::query_scalar(concat!("SELECT ", writer_state!()))
            .fetch_one(&mut *connection)
            .await?;
        self.initial_state.get_or_init(|| state);

        let mut handle = connection.lock_handle().await?;
        let (watch, flag) = (Arc::clone(self), self.hooks_flag());
        handle.set_commit_hook(move || {
            let _owned = &flag;
            watch.may_commit.swap(false, Ordering::SeqCst)
        });
        let (watch, flag) = (Arc::clone(self), self.hooks_flag());
        handle.set_rollback_hook(move || {
            let _owned = &flag;
            watch.ended.store(true, Ordering::SeqCst);
        });
        let flag = self.altered_flag();
        handle.set_update_hook(move |_| {
            let _owned = &flag;
        });
        let flag = self.altered_flag();
        handle.set_progress_handler(PROGRESS_INTERVAL, move || {
            let _owned = &flag;
            true
        });
        Ok(())
    }

    fn hooks_flag(&self) -> DropFlag {
        DropFlag(Arc::clone(&self.are_hooks_replaced))
    }

    fn altered_flag(&self) -> DropFlag {
        DropFlag(Arc::clone(&self.is_altered))
    }

    /// The collation. SQLite calls it for questions, for state checks, and for keys of the
    /// foreign-key probe. The first two have the secret as one of the operands.
    fn compare(&self, one: &str, other: &str) -> Order {
        let asked = match (one == self.secret, other == self.secret) {
            (true, _) => Some(other),
            (_, true) => Some(one),
            _ => None,
        };
        match asked {
            Some(asked) => self.answer(asked),
            None => self.keys.note_lookup(),
        }
        one.cmp(other)
    }

    fn answer(&self, asked: &str) {
        let (question, rest) = asked.split_once(' ').unwrap_or((asked, ""));
        let is_open = !self.ended.load(Ordering::SeqCst);
        let may_commit = if question == Question::Commit.text() {
            self.mark_log(rest);
            is_open
        } else if question == Question::CommitIfUnchanged.text() {
            is_open && self.is_state_unchanged()
        } else if question == Question::Rollback.text() {
            false
        } else {
            return self.compare_state(question, rest);
        };
        self.may_commit.store(may_commit, Ordering::SeqCst);
        let found = if is_open { OPEN } else { ENDED };
        self.found.store(found, Ordering::SeqCst);
    }

    fn compare_state(&self, number: &str, state: &str) {
        if let Ok(number) = number.parse()
            && (self.initial_state.get()).is_some_and(|initial| initial == state)
        {
            self.unchanged_at.store(number, Ordering::SeqCst);
        }
    }

    /// Marks the log if the transaction seems to have written nothing, or if it is not known yet
    /// whether marks work. A mark costs two system calls, and two more after COMMIT.
    fn mark_log(&self, changes: &str) {
        let (Some(log), Ok(changes)) = (self.log.get(), changes.parse()) else {
            return;
        };
        if self.changes.swap(changes, Ordering::SeqCst) == changes || !log.is_mark_proved() {
            log.mark();
        }
    }

    /// Sets the log that is marked before each COMMIT that seems to write nothing.
    pub(super) fn mark_before_commit(&self, log: &Arc<Wal>) {
        self.log.get_or_init(|| Arc::clone(log));
    }

    /// Queues a question. The connection's thread runs it before any later statement.
    pub(super) fn ask(&self, connection: &mut SqliteConnection, question: Question) {
        self.found.store(NOTHING, Ordering::SeqCst);
        let asked = sqlx::query(ASK).bind(&self.secret).bind(question.text());
        send(connection, asked);
    }

    /// Returns the answer to the last question. Call this after the reply to the statement that
    /// follows the question.
    pub(super) fn found(&self) -> Found {
        match self.found.load(Ordering::SeqCst) {
            OPEN => Found::Open,
            ENDED => Found::Ended,
            _ => Found::Nothing,
        }
    }

    /// Queues a state check: is the connection unchanged since it was opened? The result is valid
    /// until the connection is used again.
    pub(super) fn check_state(&self, connection: &mut SqliteConnection) {
        let check = self.state_check(with_state_check!(""));
        send(connection, check);
    }

    /// Ends the transaction, and queues a state check right after it. No task waits for the check:
    /// it runs while the connection's thread would be idle. One hop.
    pub(super) async fn end(
        &self,
        connection: &mut SqliteConnection,
        end: End,
    ) -> sqlx::Result<()> {
        let sql = match end {
            End::Commit => with_state_check!("COMMIT; "),
            End::Rollback => with_state_check!("ROLLBACK; "),
        };
        first_reply(connection, self.state_check(sql)).await
    }

    fn state_check(&self, sql: &'static str) -> Query<'_, Sqlite, SqliteArguments> {
        // The checks are numbered, so that only the result of the last one counts. The result of an
        // earlier check may come late. And if the connection's thread has ended, this check does
        // not run at all.
        let number = self.state_checks.fetch_add(1, Ordering::SeqCst) + 1;
        sqlx::query(sql).bind(&self.secret).bind(number.to_string())
    }

    fn is_state_unchanged(&self) -> bool {
        let last = self.state_checks.load(Ordering::SeqCst);
        self.unchanged_at.load(Ordering::SeqCst) == last && last > 0
    }

    /// Returns whether the connection is unchanged since it was opened. Call this after the reply
    /// to a statement that follows the state check.
    pub(super) fn is_unchanged(&self) -> bool {
        self.is_state_unchanged() && !self.is_altered() && !self.are_hooks_replaced()
    }

    /// Returns whether a handler has replaced a callback that this type depends on. Then the
    /// reports of this type cannot be trusted.
    pub(super) fn are_hooks_replaced(&self) -> bool {
        self.are_hooks_replaced.load(Ordering::SeqCst)
    }

    /// Returns whether a handler has replaced another callback or changed the probe's table. Then
    /// the next request must not get this connection.
    pub(super) fn is_altered(&self) -> bool {
        self.is_altered.load(Ordering::SeqCst)
    }

    /// Records that a transaction of ours has begun.
    pub(super) fn begun(&self) {
        self.may_commit.store(false, Ordering::SeqCst);
        self.ended.store(false, Ordering::SeqCst);
    }

    /// Returns whether our transaction has ended. Certain only after the reply to a statement that
    /// was sent after all others.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Makes the commit hook refuse every COMMIT until the next question.
    pub(super) fn forbid_commit(&self) {
        self.may_commit.store(false, Ordering::SeqCst);
    }

    /// Returns whether COMMIT would find a broken deferred foreign key. Returns `false` if the
    /// probe does not work on this version of SQLite; COMMIT then detects the key. One hop.
    pub(super) async fn is_constraint_broken(
        &self,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<bool> {
        let is_broken = match self.keys.check(connection).await? {
            Keys::NotProbed => return Ok(false),
            Keys::Hold => false,
            Keys::Broken => true,
            Keys::Unknown => {
                self.is_altered.store(true, Ordering::SeqCst);
                return Err(sqlx::Error::WorkerCrashed);
            }
        };
        // `total_changes()` has counted the row that the probe deleted and restored.
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(is_broken)
    }
}

impl ending::End for Arc<Watch> {
    /// Does nothing, because the caller is about to close the connection. Only a handler that has
    /// replaced our hooks can have committed anything.
    fn end(&self) -> BoxFuture<'_, Ended> {
        let ended = match self.are_hooks_replaced() {
            true => Ended::Before,
            false => Ended::RolledBack,
        };
        ready(ended).boxed()
    }
}

/// Queues a statement on the connection, and does not wait for its reply. The queue is never full.
pub(super) fn send<'q>(connection: &mut SqliteConnection, query: impl Execute<'q, Sqlite> + 'q) {
    let _under_way = connection.fetch_many(query).next().now_or_never();
}

/// Waits for the reply to the first statement of `query`. That statement returns no rows.
pub(super) async fn first_reply<'q>(
    connection: &mut SqliteConnection,
    query: impl Execute<'q, Sqlite> + 'q,
) -> sqlx::Result<()> {
    match connection.fetch_many(query).next().await {
        Some(reply) => reply.map(drop),
        None => Err(sqlx::Error::WorkerCrashed),
    }
}
