//! Checks whether COMMIT would find a broken deferred foreign key.
//!
//! SQLite reports a broken deferred key only at COMMIT. That is too late if another database has
//! already been committed. SQLite counts the broken keys, but no safe interface reads the counter.
//!
//! The counter has a visible effect: when a row of a child table is deleted, SQLite looks up its
//! parent row only if the counter is not zero (`OP_FkIfZero`). So the probe deletes a row of a
//! child table of this library. A lookup of its parent compares keys by a collation of this
//! library, which records the lookup.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Executor};

const TABLES: &str = "\
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
    DELETE FROM temp.rocket_tx_child RETURNING 1;
    ROLLBACK TO rocket_tx_probe;
    RELEASE rocket_tx_probe";

/// The foreign-key probe: deletes a row of its own child table, and records whether SQLite looks up
/// the parent of the row.
#[derive(Default)]
pub(super) struct KeyProbe {
    /// SQLite has looked up the parent of the row.
    looked_up: AtomicBool,
    /// The probe is reliable on this version of SQLite.
    works: AtomicBool,
}

/// The result of the probe.
pub(super) enum Keys {
    Hold,
    Broken,
    /// A request has changed the probe's table. The next request must get another connection.
    Unknown,
    /// The probe does not work on this version of SQLite. COMMIT detects a broken key.
    NotProbed,
}

impl KeyProbe {
    /// Creates the probe's tables, and checks whether the probe works. Call this after the
    /// collation is created.
    pub(super) async fn install(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        connection.execute("PRAGMA temp_store = memory").await?;
        connection.execute(sqlx::raw_sql(TABLES)).await?;
        // No key is broken now. If this version of SQLite looks up the parent all the same, the
        // probe would make every request fail. Then it is not used, and only COMMIT detects a
        // broken key.
        self.works.store(true, Ordering::SeqCst);
        let works = matches!(self.check(connection).await?, Keys::Hold);
        self.works.store(works, Ordering::SeqCst);
        Ok(())
    }

    /// Records a lookup of the parent. Called when the collation compares keys.
    pub(super) fn note_lookup(&self) {
        self.looked_up.store(true, Ordering::SeqCst);
    }

    /// Runs the probe: deletes the row and restores it. One hop (a message to the connection's
    /// thread and its reply).
    pub(super) async fn check(&self, connection: &mut SqliteConnection) -> sqlx::Result<Keys> {
        if !self.works.load(Ordering::SeqCst) {
            // Wait until the statements in the queue are done: the caller relies on that.
            connection.ping().await?;
            return Ok(Keys::NotProbed);
        }
        self.looked_up.store(false, Ordering::SeqCst);
        let rows = connection.fetch_all(sqlx::raw_sql(PROBE)).await?;
        Ok(match (rows.len(), self.looked_up.load(Ordering::SeqCst)) {
            (1, false) => Keys::Hold,
            (1, true) => Keys::Broken,
            _ => Keys::Unknown,
        })
    }
}
