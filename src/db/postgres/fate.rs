//! What became of a transaction whose end was not answered, asked of the server itself.
//!
//! Another session ends the server's process that may still be at it, waits until it is gone, and
//! then asks for the transaction by its id. The answer counts only on the same incarnation of the
//! same server: after a crash or a failover, the id of a transaction that never got to the disk may
//! be given to somebody else's.

use std::sync::Arc;
use std::time::Duration;

use rocket::futures::FutureExt;
use rocket::futures::future::BoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::time::{Instant, sleep, timeout_at};

use super::session::OpenTransaction;
use super::sessions::Sessions;
use super::settings::Settings;
use crate::db::Ended;
use crate::db::ending::End;

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

/// The table that a transaction has locked which has no id yet, as everybody may who may read it.
/// Others lock it for a moment at most: only a query that names it keeps it to its transaction's end.
pub(super) const MARK: &str = "pg_catalog.pg_ts_config_map";

impl Backend {
    /// The id of its process.
    pub(super) fn pid(&self) -> &str {
        &self.pid
    }

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

    /// What became of the transaction `xid`, which a statement of ours was to end on this process.
    /// `None`: it cannot be known.
    ///
    /// Ends the process. Dropped half-way, it may have done so.
    pub(super) async fn fate(&self, xid: &str, sessions: &Sessions) -> Option<Fate> {
        let fate = self.end(Some(xid), sessions).await.fate;
        tracing::warn!(
            ?fate,
            xid,
            "the end of a transaction was not answered; the server was asked what became of it"
        );
        fate
    }

    /// Ends the process, and waits until it is gone.
    async fn end(&self, xid: Option<&str>, sessions: &Sessions) -> Seen {
        // What is left is for the answer.
        let deadline = Instant::now() + sessions.settle_timeout() * 2 / 5;
        let mut seen = Seen::default();
        let asking = async {
            loop {
                match self.ask(xid, sessions.settings(), &mut seen).await {
                    Ok(Asked::Enough) => return,
                    Ok(Asked::IsThere) => {}
                    Err(error) => tracing::debug!(%error, "asking for the fate of a transaction"),
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        // After it, `seen` says how far it came.
        let _elapsed = timeout_at(deadline, asking).await;
        seen
    }

    async fn ask(
        &self,
        xid: Option<&str>,
        settings: &Settings,
        seen: &mut Seen,
    ) -> sqlx::Result<Asked> {
        let mut connection = settings.connect_options().connect().await?;
        let is_same = match &self.incarnation {
            Some(before) => incarnation(&mut connection).await? == **before,
            None => false,
        };
        let Self { pid, started, .. } = self;
        let stands = match xid {
            Some(xid) => format!("backend_xid IS NOT DISTINCT FROM '{xid}'::xid8::xid"),
            None => format!(
                "EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = {pid} \
                     AND relation = '{MARK}'::regclass AND mode = 'AccessShareLock')"
            ),
        };
        // COMMIT may wait for a standby: ended there, it would stand on this server alone.
        let end = format!(
            "SELECT ({stands})::text, (wait_event IS NOT DISTINCT FROM 'SyncRep')::text, \
                 CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' \
                 THEN pg_terminate_backend(pid) END \
             FROM pg_stat_activity WHERE pid = {pid} AND backend_start = '{started}'"
        );
        let process = sqlx::raw_sql(AssertSqlSafe(end))
            .fetch_optional(&mut connection)
            .await?;
        if let Some(process) = process {
            let (stands, waits): (&str, &str) = (process.try_get(0)?, process.try_get(1)?);
            seen.stood.get_or_insert(stands == "true");
            return Ok(match waits {
                "true" => Asked::Enough,
                _ => Asked::IsThere,
            });
        }
        // Another server knows nothing of it, unless the process was seen there.
        seen.is_gone = is_same || self.incarnation.is_none() || seen.stood.is_some();
        let (Some(xid), true) = (xid, is_same) else {
            return Ok(Asked::Enough);
        };
        let status = format!("SELECT pg_xact_status('{xid}')");
        let status = sqlx::raw_sql(AssertSqlSafe(status))
            .fetch_one(&mut connection)
            .await?;
        let status: Option<&str> = status.try_get(0)?;
        seen.fate = match status {
            Some("committed") => Some(Fate::Committed),
            Some("aborted") => Some(Fate::RolledBack),
            Some(_) => return Ok(Asked::IsThere),
            None => None,
        };
        Ok(Asked::Enough)
    }
}

/// What is known of a process that was to be ended.
#[derive(Default)]
struct Seen {
    /// At first sight it was at the transaction.
    stood: Option<bool>,
    is_gone: bool,
    fate: Option<Fate>,
}

enum Asked {
    /// More cannot be known.
    Enough,
    /// The process is not gone yet.
    IsThere,
}

/// A transaction, as it is ended from outside its session.
pub(super) struct Outside {
    pub(super) backend: Arc<Backend>,
    pub(super) transaction: OpenTransaction,
    pub(super) sessions: Sessions,
}

impl End for Outside {
    fn end(&self) -> BoxFuture<'_, Ended> {
        async {
            let Self {
                backend,
                transaction,
                sessions,
            } = self;
            let seen = backend.end(transaction.id.as_deref(), sessions).await;
            let may_be_kept = transaction.writes
                && match (seen.fate, seen.stood) {
                    (Some(Fate::Committed), _) | (_, Some(false)) => true,
                    (Some(Fate::RolledBack), _) => false,
                    (None, Some(true)) => !seen.is_gone && transaction.is_doubtful(),
                    (None, None) => transaction.is_doubtful(),
                };
            match seen.is_gone {
                _ if may_be_kept => Ended::Before,
                true => Ended::RolledBack,
                false => Ended::Unasked,
            }
        }
        .boxed()
    }
}
