//! What only SQLite itself can say about the writer's transaction: whether it still stands, and
//! whether its COMMIT would be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::Executor;
use sqlx::sqlite::SqliteConnection;

/// What the writer's callbacks and our transactions tell each other. One for each connection.
///
/// SQLite can end a transaction by itself (`OR ROLLBACK`, `RAISE(ROLLBACK)`, a full disk), and a
/// handler can by sending COMMIT or ROLLBACK. Later statements would then commit one by one.
/// <https://www.sqlite.org/lang_transaction.html>
#[derive(Default)]
pub(super) struct Watch {
    /// Set only around a COMMIT of ours; any other commit becomes a rollback.
    may_commit: AtomicBool,
    /// The transaction that we began is over.
    ended: AtomicBool,
    /// The parent of the row in [`PROBE`] was looked for.
    looked_for: AtomicBool,
    /// The probe tells the truth on this version of SQLite.
    probe_works: AtomicBool,
}

/// A deferred foreign key that is broken is found by COMMIT alone, which is too late when another
/// database has been committed already; and SQLite's counter of broken ones is not to be had
/// through a safe interface. But it shows: when a row of a child table goes, SQLite looks for its
/// parent only if that counter is not zero (`OP_FkIfZero`). The parent's key is compared by a
/// collation of ours, so we are told of the look.
const PROBE_TABLES: &str = "\
    CREATE TEMP TABLE rocket_tx_parent (
        key TEXT COLLATE rocket_tx_probe PRIMARY KEY
    ) WITHOUT ROWID;
    CREATE TEMP TABLE rocket_tx_child (
        parent TEXT REFERENCES rocket_tx_parent (key) DEFERRABLE INITIALLY DEFERRED
    );
    INSERT INTO rocket_tx_parent VALUES ('');
    INSERT INTO rocket_tx_child VALUES ('');";

const PROBE: &str = "\
    SAVEPOINT rocket_tx_probe;
    DELETE FROM temp.rocket_tx_child;
    ROLLBACK TO rocket_tx_probe;
    RELEASE rocket_tx_probe";

impl Watch {
    pub(super) async fn install(
        self: Arc<Self>,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<()> {
        let mut handle = connection.lock_handle().await?;
        let watch = Arc::clone(&self);
        handle.create_collation("rocket_tx_probe", move |one, other| {
            watch.looked_for.store(true, Ordering::SeqCst);
            one.cmp(other)
        })?;
        drop(handle);
        connection.execute("PRAGMA temp_store = memory").await?;
        connection.execute(sqlx::raw_sql(PROBE_TABLES)).await?;
        // Nothing is broken here. A version of SQLite that looks all the same would make every
        // request fail; there, COMMIT finds out.
        self.probe_works.store(true, Ordering::SeqCst);
        let broken = self.is_constraint_broken(connection).await?;
        self.probe_works.store(!broken, Ordering::SeqCst);

        let mut handle = connection.lock_handle().await?;
        let watch = Arc::clone(&self);
        handle.set_commit_hook(move || watch.may_commit.load(Ordering::SeqCst));
        handle.set_rollback_hook(move || self.ended.store(true, Ordering::SeqCst));
        Ok(())
    }

    pub(super) fn begun(&self) {
        self.may_commit.store(false, Ordering::SeqCst);
        self.ended.store(false, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn allow_commit(&self, allowed: bool) {
        self.may_commit.store(allowed, Ordering::SeqCst);
    }

    /// Whether COMMIT would find a deferred foreign key broken. One hop.
    pub(super) async fn is_constraint_broken(
        &self,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<bool> {
        if !self.probe_works.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.looked_for.store(false, Ordering::SeqCst);
        connection.execute(sqlx::raw_sql(PROBE)).await?;
        Ok(self.looked_for.load(Ordering::SeqCst))
    }
}
