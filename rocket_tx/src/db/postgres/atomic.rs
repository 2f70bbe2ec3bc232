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
    AtomicDatabase, Decided, Decider, DeciderId, DecisionId, Finished, GlobalId, InDoubt,
    has_only_known_participants, parse_id,
};
use crate::db::{Backend, Migrations, PoolError, TransactionPool};

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
    fn backend(&self) -> Backend {
        Backend::Postgres
    }

    async fn obstacle(&self) -> sqlx::Result<Option<&'static str>> {
        let sql = "SELECT pg_catalog.current_setting('max_prepared_transactions'), \
             pg_catalog.pg_is_in_recovery()::pg_catalog.text";
        let rows = self.run(sql.into()).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        if row.try_get::<&str, _>(1)? == "true" {
            // It may be promoted, and it has the id of its primary, which may be attached too.
            let reason = "its server is a standby, which neither prepares nor decides";
            return Err(sqlx::Error::Protocol(reason.into()));
        }
        Ok(match row.try_get(0)? {
            "0" => Some(
                "`max_prepared_transactions` of its server is 0; set it to the number of \
                 connections at least",
            ),
            _ => None,
        })
    }

    async fn create_decisions(&self) -> Result<(), PoolError> {
        let mut migrator = migrate!("migrations/decisions/postgres");
        migrator.dangerous_set_table_name("_rocket_tx_decisions_migrations");
        self.migrate(&Migrations::new().postgres(migrator)).await
    }

    async fn decider(&self) -> sqlx::Result<Option<Decider>> {
        let table = "SELECT pg_catalog.format('%I.%I', nspname, relname) \
             FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace \
                 ON pg_namespace.oid = relnamespace \
             WHERE pg_class.oid = pg_catalog.to_regclass('rocket_tx_decisions')";
        let rows = self.run(table.into()).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let table = Arc::from(row.try_get::<&str, _>(0)?);
        let rows = self.run("SELECT id FROM rocket_tx_decider".into()).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let id = parse_id(row.try_get(0)?)?;
        Ok(Some(Decider { id, table }))
    }

    /// Also writes a row that exists: this COMMIT then waits for the disk and for synchronous
    /// standbys, which the COMMIT of a decider that has crashed may not have reached.
    async fn decide_or_abort(&self, decider: &Decider, id: DecisionId) -> sqlx::Result<Decided> {
        let sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '{} ms'; {FLUSHED}; \
             INSERT INTO {} AS known (id, decision, participants) VALUES ('{id}', 'abort', '') \
                 ON CONFLICT (id) DO UPDATE SET decided_at = known.decided_at \
                 RETURNING decision; \
             COMMIT",
            LOCK_TIMEOUT.as_millis(),
            decider.table
        );
        let rows = self.run(sql).await?;
        // FLUSHED returns a row too. A rule or a trigger may have prevented the INSERT.
        match &rows[..] {
            [_, row] => Decided::parse(row.try_get(0)?),
            _ => Err(sqlx::Error::RowNotFound),
        }
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
        known: &[DeciderId],
    ) -> sqlx::Result<Vec<DecisionId>> {
        let sql = format!(
            "SELECT id FROM {} \
             WHERE decided_at < pg_catalog.clock_timestamp() - interval '{} ms' \
                 AND (decision = 'commit' OR transaction \
                     < pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())) \
                 AND {} \
             ORDER BY decided_at LIMIT 500",
            decider.table,
            age.as_millis(),
            has_only_known_participants(known)
        );
        let rows = self.run(sql).await?;
        rows.iter().map(|row| parse_id(row.try_get(0)?)).collect()
    }

    async fn in_doubt(&self) -> sqlx::Result<Vec<InDoubt>> {
        // A standby shows no prepared transactions before it is promoted. It refuses READ WRITE.
        let sql = format!(
            "BEGIN READ WRITE; SELECT gid, (1000 * extract(epoch FROM pg_catalog.clock_timestamp() - prepared))\
                 ::pg_catalog.int8::pg_catalog.text \
             FROM pg_catalog.pg_prepared_xacts \
             WHERE database = pg_catalog.current_database() AND gid LIKE '{}%'; \
             ROLLBACK",
            GlobalId::PREFIX
        );
        let rows = self.run(sql).await?;
        let in_doubt = |row: &PgRow| {
            let (id, age): (&str, &str) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
            Some(InDoubt {
                id: id.parse().ok()?,
                age: Duration::from_millis(age.parse::<i64>().ok()?.unsigned_abs()),
            })
        };
        Ok(rows.iter().filter_map(in_doubt).collect())
    }

    async fn finish(&self, id: &GlobalId, decided: Decided) -> sqlx::Result<Finished> {
        match self.run(finishing(id, decided)).await {
            Ok(_) => Ok(Finished::Done),
            Err(error) => finished_elsewhere(error),
        }
    }
}

/// Returns the statement that finishes a prepared transaction. It must be alone in its message.
fn finishing(id: &GlobalId, decided: Decided) -> String {
    let verb = match decided {
        Decided::Commit => "COMMIT",
        Decided::Abort => "ROLLBACK",
    };
    format!("{verb} PREPARED {}", literal(&id.to_string()))
}

/// Accepts the errors by which another session was faster. It decides by the same row.
fn finished_elsewhere(error: sqlx::Error) -> sqlx::Result<Finished> {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        // undefined_object
        Some("42704") => Ok(Finished::Elsewhere),
        // object_not_in_prerequisite_state
        Some("55000") => Ok(Finished::InProgress),
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
    if replies.error.is_none() && replies.count == 1 {
        return Ok(());
    }
    let error = replies.into_error();
    let text = error.to_string();
    match finished_elsewhere(error)? {
        Finished::Done | Finished::Elsewhere => Ok(()),
        // Nobody knows yet whether the other session succeeds.
        Finished::InProgress => Err(sqlx::Error::Protocol(text)),
    }
}
