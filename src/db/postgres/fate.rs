//! What became of a transaction whose end was not answered, asked of the server itself.
//!
//! Another session ends the server's process that may still be at it, waits until it is gone, and
//! then asks for the transaction by its id. The answer counts only on the same incarnation of the
//! same server: after a crash or a failover, the id of a transaction that never got to the disk may
//! be given to somebody else's.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::time::{Instant, sleep, timeout_at};

use super::settings::Settings;

/// The server's process behind a session.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pid: String,
    /// When it started: process ids are used again.
    started: String,
    /// `None` where this role may not ask for it: then nothing is found out later.
    incarnation: Option<Arc<str>>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    RolledBack,
}

/// Which server this is, and since when. A crash of one of its processes leaves its start as it
/// was, but resets the statistics.
/// <https://www.postgresql.org/docs/current/monitoring-stats.html>
const INCARNATION: &str = "\
    SELECT concat_ws(' ', system_identifier, pg_postmaster_start_time(), stats_reset) \
    FROM pg_control_system(), pg_stat_archiver";

async fn incarnation(connection: &mut PgConnection) -> sqlx::Result<String> {
    let row = sqlx::raw_sql(INCARNATION).fetch_one(connection).await?;
    row.try_get(0)
}

impl Backend {
    /// One round trip.
    pub(super) async fn new(pid: String, started: String, connection: &mut PgConnection) -> Self {
        let incarnation = match incarnation(connection).await {
            Ok(incarnation) => Some(incarnation.into()),
            Err(error) => {
                tracing::debug!(%error, "the fate of a lost COMMIT will not be found out here");
                None
            }
        };
        Self {
            pid,
            started,
            incarnation,
        }
    }

    /// What became of the transaction `xid` that this process was at. `None`: it cannot be known.
    ///
    /// Ends the process. Dropped half-way, it may have done so.
    pub(super) async fn fate(
        &self,
        xid: &str,
        settings: &Settings,
        limit: Duration,
    ) -> Option<Fate> {
        let deadline = Instant::now() + limit;
        let asking = async {
            loop {
                match self.ask(xid, settings).await {
                    Ok(Some(answer)) => return answer,
                    // The process is not gone yet.
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "asking for the fate of a transaction"),
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let fate = timeout_at(deadline, asking).await.ok().flatten();
        tracing::warn!(
            ?fate,
            xid,
            "the end of a transaction was not answered; the server was asked what became of it"
        );
        fate
    }

    /// `Ok(None)`: ask again. `Ok(Some(None))`: nobody can know.
    async fn ask(&self, xid: &str, settings: &Settings) -> sqlx::Result<Option<Option<Fate>>> {
        let Some(before) = &self.incarnation else {
            return Ok(Some(None));
        };
        let mut connection = settings.connect_options().connect().await?;
        if incarnation(&mut connection).await? != **before {
            return Ok(Some(None));
        }
        let Self { pid, started, .. } = self;
        // COMMIT may wait for a standby: ended there, it would stand on this server alone.
        let end = format!(
            "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep', \
                 CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' \
                 THEN pg_terminate_backend(pid) END \
             FROM pg_stat_activity WHERE pid = {pid} AND backend_start = '{started}'"
        );
        let process = sqlx::raw_sql(AssertSqlSafe(end))
            .fetch_optional(&mut connection)
            .await?;
        if let Some(process) = process {
            let waits: &str = process.try_get(0)?;
            return Ok((waits == "t").then_some(None));
        }
        let status = format!("SELECT pg_xact_status('{xid}')");
        let status = sqlx::raw_sql(AssertSqlSafe(status))
            .fetch_one(&mut connection)
            .await?;
        let status: Option<&str> = status.try_get(0)?;
        Ok(match status {
            Some("committed") => Some(Some(Fate::Committed)),
            Some("aborted") => Some(Some(Fate::RolledBack)),
            Some(_) => None,
            None => Some(None),
        })
    }
}
