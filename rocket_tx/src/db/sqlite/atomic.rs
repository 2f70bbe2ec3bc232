//! Atomic commit on a SQLite file: it can decide, and cannot prepare.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, migrate};

use super::SqlitePool;
use crate::db::atomic::{
    AtomicDatabase, Decided, Decider, DeciderId, DecisionId, Finished, GlobalId, InDoubt,
    has_only_known_participants, parse_id,
};
use crate::db::{
    Access, Backend, BeginOptions, CommitError, Isolation, Migrations, PoolError, Session,
    TransactionPool, WaitPolicy,
};

/// Qualified, so that a temporary table of the same name does not hide it.
const TABLE: &str = "main.rocket_tx_decisions";

const WRITES: BeginOptions = BeginOptions {
    isolation: Isolation::Configured,
    access: Access::ReadWrite,
    wait: WaitPolicy::QUEUE,
};

#[rocket::async_trait]
impl AtomicDatabase for SqlitePool {
    fn backend(&self) -> Backend {
        Backend::Sqlite
    }

    async fn obstacle(&self) -> sqlx::Result<Option<&'static str>> {
        Ok(Some("SQLite cannot prepare transactions"))
    }

    async fn create_decisions(&self) -> Result<(), PoolError> {
        let mut migrator = migrate!("migrations/decisions/sqlite");
        migrator.dangerous_set_table_name("_rocket_tx_decisions_migrations");
        self.migrate(&Migrations::new().sqlite(migrator)).await
    }

    async fn decider(&self) -> sqlx::Result<Option<Decider>> {
        const EXISTS: &str = "SELECT count(*) FROM main.sqlite_schema \
             WHERE type = 'table' AND name = 'rocket_tx_decider'";

        let mut session = self.session(Access::ReadOnly, WaitPolicy::QUEUE).await?;
        let tables: i64 = sqlx::query_scalar(EXISTS)
            .fetch_one(session.connection())
            .await?;
        if tables == 0 {
            return Ok(None);
        }
        let id: String = sqlx::query_scalar("SELECT id FROM main.rocket_tx_decider")
            .fetch_one(session.connection())
            .await?;
        let id = parse_id(&id)?;
        let table = Arc::from(TABLE);
        Ok(Some(Decider { id, table }))
    }

    /// A decider keeps the file's write lock until it has committed, so this waits for it. Also
    /// writes a row that exists: this COMMIT then waits for the disk, which the COMMIT of a process
    /// that has died may not have reached.
    async fn decide_or_abort(&self, decider: &Decider, id: DecisionId) -> sqlx::Result<Decided> {
        let decide = format!(
            "INSERT INTO {} AS known (id, decision, participants) VALUES ($1, 'abort', '') \
                 ON CONFLICT (id) DO UPDATE SET decided_at = known.decided_at \
                 RETURNING decision",
            decider.table
        );
        let mut transaction = self.open(WRITES).await?;
        let decision: String = sqlx::query_scalar(AssertSqlSafe(decide))
            .bind(id.to_string())
            .fetch_one(transaction.connection())
            .await?;
        transaction.commit().await.map_err(not_committed)?;
        Decided::parse(&decision)
    }

    async fn forget(&self, decider: &Decider, ids: &[DecisionId]) -> sqlx::Result<()> {
        let mut transaction = self.open(WRITES).await?;
        for id in ids {
            let delete = format!("DELETE FROM {} WHERE id = $1", decider.table);
            sqlx::query(AssertSqlSafe(delete))
                .bind(id.to_string())
                .execute(transaction.connection())
                .await?;
        }
        transaction.commit().await.map_err(not_committed)
    }

    /// A decider keeps the write lock from BEGIN to COMMIT. So when the decision to abort was
    /// written, its transaction had ended.
    async fn old_decisions(
        &self,
        decider: &Decider,
        age: Duration,
        known: &[DeciderId],
    ) -> sqlx::Result<Vec<DecisionId>> {
        let select = format!(
            "SELECT id FROM {} WHERE decided_at < unixepoch() - $1 AND {} \
             ORDER BY decided_at LIMIT 500",
            decider.table,
            has_only_known_participants(known)
        );
        let mut session = self.session(Access::ReadOnly, WaitPolicy::QUEUE).await?;
        let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(select))
            .bind(i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
            .fetch_all(session.connection())
            .await?;
        ids.iter().map(|id| parse_id(id)).collect()
    }

    async fn in_doubt(&self) -> sqlx::Result<Vec<InDoubt>> {
        Ok(Vec::new())
    }

    async fn finish(&self, _: &GlobalId, _: Decided) -> sqlx::Result<Finished> {
        Ok(Finished::Done)
    }
}

fn not_committed(error: CommitError) -> sqlx::Error {
    match error {
        CommitError::Refused(error) | CommitError::Lost(error) | CommitError::Unknown(error) => {
            error
        }
        CommitError::NotDurable(error) => error.into(),
        error => sqlx::Error::Protocol(error.to_string()),
    }
}
