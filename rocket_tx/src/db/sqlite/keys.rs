//! Whether COMMIT would find a deferred foreign key broken.
//!
//! COMMIT alone finds one, which is too late when another database has been committed already; and
//! SQLite's counter of broken ones is not to be had through a safe interface. But it shows: when a row
//! of a child table goes, SQLite looks for its parent only if that counter is not zero
//! (`OP_FkIfZero`). The parent's key is compared by a collation of ours, so we are told of the look.

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

/// A row of a child table of our own, and what is seen when it is deleted.
#[derive(Default)]
pub(super) struct KeyProbe {
    /// The parent of the row was looked for.
    looked_for: AtomicBool,
    /// The probe tells the truth on this version of SQLite.
    works: AtomicBool,
}

/// What the probe has found.
pub(super) enum Keys {
    Hold,
    Broken,
    /// A request has changed the probe's table. The next one is to get another connection.
    Unknown,
    /// This version of SQLite does not show it, and COMMIT finds out.
    NotProbed,
}

impl KeyProbe {
    /// To be called once the collation is there.
    pub(super) async fn install(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        connection.execute("PRAGMA temp_store = memory").await?;
        connection.execute(sqlx::raw_sql(TABLES)).await?;
        // Nothing is broken here. A version of SQLite that looks all the same would make every
        // request fail; there, COMMIT finds out.
        self.works.store(true, Ordering::SeqCst);
        let works = matches!(self.look(connection).await?, Keys::Hold);
        self.works.store(works, Ordering::SeqCst);
        Ok(())
    }

    /// To be called when the collation compares keys.
    pub(super) fn note_look(&self) {
        self.looked_for.store(true, Ordering::SeqCst);
    }

    /// One hop. A row is deleted, and put back.
    pub(super) async fn look(&self, connection: &mut SqliteConnection) -> sqlx::Result<Keys> {
        if !self.works.load(Ordering::SeqCst) {
            // What is still in the queue must be done all the same.
            connection.ping().await?;
            return Ok(Keys::NotProbed);
        }
        self.looked_for.store(false, Ordering::SeqCst);
        let rows = connection.fetch_all(sqlx::raw_sql(PROBE)).await?;
        Ok(match (rows.len(), self.looked_for.load(Ordering::SeqCst)) {
            (1, false) => Keys::Hold,
            (1, true) => Keys::Broken,
            _ => Keys::Unknown,
        })
    }
}
