//! Atomic commit outside the sessions of requests: decisions, and transactions in doubt.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, migrate};
use tokio::time::timeout;

use super::PostgresPool;
use super::proof::Replies;
use super::sessions::no_reply;
use super::settings::literal;
use crate::db::atomic::{
    AtomicDatabase, Decided, Decider, DeciderId, DecisionId, GlobalId, InDoubt, OldDecision,
};
use crate::db::{Error, Migrations, TransactionPool};

/// Limits each method. A decision can wait for the transaction of a late decider.
const LIMIT: Duration = Duration::from_secs(5);

/// Shorter than [`LIMIT`], so that the server does not wait for longer than this library.
const LOCK_TIMEOUT: Duration = Duration::from_secs(4);

/// Flushes the commit that follows even if the database does not flush commits by default. The
/// commit of a participant is always flushed, so the decision must not be lost before it.
pub(super) const FLUSHED: &str = "SELECT pg_catalog.set_config('synchronous_commit', \
     CASE pg_catalog.current_setting('synchronous_commit') WHEN 'off' THEN 'on' \
     ELSE pg_catalog.current_setting('synchronous_commit') END, true)";

impl PostgresPool {
    /// Runs statements on a new connection, and returns all rows. The connection has the role of
    /// the pool's sessions: only the role that prepared a transaction may finish it.
    async fn run(&self, sql: String) -> sqlx::Result<Vec<PgRow>> {
        let running = async {
            let mut connection: PgConnection = self.settings().session_options().connect().await?;
            let rows = sqlx::raw_sql(AssertSqlSafe(sql))
                .fetch_all(&mut connection)
                .await;
            // The result counts, and not whether the server noticed the end of the connection.
            let _closed = connection.close().await;
            rows
        };
        let result = timeout(LIMIT, running).await;
        result.unwrap_or_else(|_| Err(no_reply(LIMIT)))
    }
}

#[rocket::async_trait]
impl AtomicDatabase for PostgresPool {
    async fn can_prepare(&self) -> Result<(), String> {
        let rows = self.run("SHOW max_prepared_transactions".into()).await;
        let setting = rows.and_then(|rows| match rows.first() {
            Some(row) => row.try_get::<String, _>(0),
            None => Err(sqlx::Error::RowNotFound),
        });
        match setting.as_deref() {
            Ok("0") => Err(
                "`max_prepared_transactions` of its server is 0; set it to the number of \
                 connections at least"
                    .into(),
            ),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("its server cannot be queried: {error}")),
        }
    }

    async fn set_up_decider(&self) -> Result<Decider, Error> {
        let mut migrator = migrate!("migrations/decisions/postgres");
        migrator.dangerous_set_table_name("_rocket_tx_decisions_migrations");
        self.migrate(&Migrations::new().postgres(migrator)).await?;
        let sql = "SELECT id, (SELECT pg_catalog.format('%I.%I', nspname, relname) \
                 FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace \
                     ON pg_namespace.oid = relnamespace \
                 WHERE pg_class.oid = 'rocket_tx_decisions'::pg_catalog.regclass) \
             FROM rocket_tx_decider";
        let rows = self.run(sql.into()).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (id, table): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let id = id.parse().map_err(not_an_id)?;
        let table = Arc::from(table);
        Ok(Decider { id, table })
    }

    /// Also writes a row that exists: this COMMIT then waits for the disk and for synchronous
    /// standbys, which the COMMIT of a decider that has crashed may not have reached.
    async fn decide_or_abort(&self, decider: &Decider, id: DecisionId) -> sqlx::Result<Decided> {
        let sql = format!(
            "BEGIN READ WRITE; SET LOCAL lock_timeout = '{} ms'; {FLUSHED}; \
             INSERT INTO {} AS known (id, decision, participants) VALUES ('{id}', 'abort', '') \
                 ON CONFLICT (id) DO UPDATE SET decided_at = known.decided_at \
                 RETURNING decision; \
             COMMIT",
            LOCK_TIMEOUT.as_millis(),
            decider.table
        );
        let rows = self.run(sql).await?;
        let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
        row.try_get(0).map(Decided::parse)
    }

    async fn forget(&self, decider: &Decider, ids: &[DecisionId]) -> sqlx::Result<()> {
        let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
        if !ids.is_empty() {
            let (table, ids) = (&decider.table, ids.join(", "));
            let sql = format!("BEGIN READ WRITE; DELETE FROM {table} WHERE id IN ({ids}); COMMIT");
            self.run(sql).await?;
        }
        Ok(())
    }

    /// A late decider has an older transaction id than the decision to abort, because it began
    /// before. So it has ended once all transactions with such ids have.
    async fn old_decisions(
        &self,
        decider: &Decider,
        age: Duration,
    ) -> sqlx::Result<Vec<OldDecision>> {
        let sql = format!(
            "SELECT id, participants FROM {} \
             WHERE decided_at < pg_catalog.clock_timestamp() - interval '{} ms' \
                 AND (decision = 'commit' OR transaction \
                     < pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())) \
             ORDER BY decided_at LIMIT 500",
            decider.table,
            age.as_millis()
        );
        let rows = self.run(sql).await?;
        let parse = |row: &PgRow| OldDecision::parse(row.try_get(0)?, row.try_get(1)?);
        rows.iter().map(parse).collect()
    }

    async fn in_doubt(&self, deciders: &[DeciderId]) -> sqlx::Result<Vec<InDoubt>> {
        // A standby shows no prepared transactions before it is promoted. It refuses READ WRITE.
        let sql = format!(
            "BEGIN READ WRITE; SELECT gid, (1000 * extract(epoch FROM pg_catalog.clock_timestamp() - prepared))\
                 ::pg_catalog.int8::pg_catalog.text \
             FROM pg_catalog.pg_prepared_xacts \
             WHERE database = pg_catalog.current_database() AND gid LIKE '{}%' ORDER BY prepared; \
             ROLLBACK",
            GlobalId::PREFIX
        );
        let rows = self.run(sql).await?;
        let in_doubt = |row: &PgRow| {
            let (id, age): (&str, &str) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
            Some(InDoubt {
                id: id.parse().ok()?,
                age: Duration::from_millis(age.parse().unwrap_or_default()),
            })
        };
        let prepared = rows.iter().filter_map(in_doubt);
        let is_ours = |prepared: &InDoubt| deciders.contains(&prepared.id.decider);
        Ok(prepared.filter(is_ours).collect())
    }

    async fn finish(&self, id: &GlobalId, decided: Decided) -> sqlx::Result<()> {
        let result = self.run(finishing(id, decided)).await;
        result.map(drop).or_else(was_finished)
    }
}

fn not_an_id(error: uuid::Error) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// Returns the statement that finishes a prepared transaction. It must be alone in its message.
fn finishing(id: &GlobalId, decided: Decided) -> String {
    let verb = match decided {
        Decided::Commit => "COMMIT",
        Decided::Abort => "ROLLBACK",
    };
    format!("{verb} PREPARED {}", literal(&id.to_string()))
}

/// Accepts undefined_object: another process was faster, and it decides by the same row.
fn was_finished(error: sqlx::Error) -> sqlx::Result<()> {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("42704") => Ok(()),
        _ => Err(error),
    }
}

/// Finishes a prepared transaction on the session that prepared it.
pub(super) async fn finish(
    connection: &mut PgConnection,
    id: &GlobalId,
    decided: Decided,
) -> sqlx::Result<()> {
    let replies = Replies::to(connection, finishing(id, decided)).await;
    match replies.error.is_none() && replies.count == 1 {
        true => Ok(()),
        false => was_finished(replies.into_error()),
    }
}
