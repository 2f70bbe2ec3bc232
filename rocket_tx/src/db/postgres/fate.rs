//! Finds out how a transaction ended when the server did not reply to its COMMIT or ROLLBACK.
//!
//! Another session ends the server process that may still be running the transaction, waits until
//! that process is gone, and then queries the status of the transaction by its id. The result
//! counts only if the server and its incarnation are the same. An incarnation is one run of a
//! server, from its start or its recovery after a crash until it stops or crashes. After a crash or
//! a failover, the id of a transaction that never reached the disk may be given to another
//! transaction.

use std::sync::Arc;
use std::time::Duration;

use rocket::futures::FutureExt;
use rocket::futures::future::BoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::time::{Instant, sleep, timeout_at};

use super::session::OpenTransaction;
use super::sessions::Sessions;
use super::settings::{Settings, literal};
use crate::db::Ended;
use crate::db::ending::End;

/// The server process that serves a session.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pid: String,
    /// When the process started: process ids are reused.
    started: String,
    /// `None` if it could not be read, for example because the role lacks the permission. Then it
    /// stays unknown how a transaction ended.
    incarnation: Option<Arc<str>>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    RolledBack,
}

/// Identifies the server and its incarnation. A crash of one server process does not change the
/// start time of the server, but resets the statistics.
/// <https://www.postgresql.org/docs/current/monitoring-stats.html>
const INCARNATION: &str = "\
    SELECT concat_ws(' ', system_identifier, pg_postmaster_start_time(), stats_reset) \
    FROM pg_control_system(), pg_stat_archiver";

async fn incarnation(connection: &mut PgConnection) -> sqlx::Result<String> {
    let row = sqlx::raw_sql(INCARNATION).fetch_one(connection).await?;
    row.try_get(0)
}

/// How a transaction is distinguished from others of its session.
enum TransactionMark<'a> {
    /// By its id.
    Id(&'a str),
    /// By the `application_name` of its session.
    Mark(&'a str),
    /// The transaction cannot be distinguished.
    Unknown,
}

impl<'a> TransactionMark<'a> {
    fn of(transaction: &'a OpenTransaction) -> Self {
        match (&transaction.id, &transaction.mark) {
            (Some(id), _) => Self::Id(id),
            (None, Some(mark)) => Self::Mark(mark),
            (None, None) => Self::Unknown,
        }
    }

    /// Returns an SQL condition on a row of `pg_stat_activity`. It is true if the process is in
    /// this transaction.
    fn condition(&self) -> String {
        match self {
            Self::Id(id) => format!("backend_xid IS NOT DISTINCT FROM '{id}'::xid8::xid"),
            Self::Mark(mark) => format!("application_name = {}", literal(mark)),
            Self::Unknown => "FALSE".into(),
        }
    }
}

impl Backend {
    /// Returns the id of the process.
    pub(super) fn pid(&self) -> &str {
        &self.pid
    }

    /// Creates the `Backend` of a session, and reads the incarnation of the server. One round trip.
    pub(super) async fn new(pid: String, started: String, connection: &mut PgConnection) -> Self {
        let incarnation = match incarnation(connection).await {
            Ok(incarnation) => Some(incarnation.into()),
            Err(error) => {
                tracing::debug!(
                    %error,
                    "could not read the incarnation of the server; the outcome of a lost COMMIT \
                     stays unknown"
                );
                None
            }
        };
        Self {
            pid,
            started,
            incarnation,
        }
    }

    /// Returns how the transaction `xid` ended, after the process got a COMMIT or ROLLBACK and did
    /// not reply. Ends the process first, as [`stop`](Self::stop) does. Returns `None` if the end
    /// of the transaction cannot be determined.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped half-way, the process may have been ended.
    pub(super) async fn fate(&self, xid: &str, sessions: &Sessions) -> Option<Fate> {
        let fate = self.end(TransactionMark::Id(xid), sessions).await.fate;
        tracing::warn!(
            ?fate,
            xid,
            "COMMIT or ROLLBACK got no reply; queried the server how the transaction ended"
        );
        fate
    }

    /// Ends the process, even while it runs a statement, and waits a limited time until it is gone.
    /// A process whose COMMIT waits for a standby is not ended.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped half-way, the process may have been ended.
    pub(super) async fn stop(&self, sessions: &Sessions) {
        self.end(TransactionMark::Unknown, sessions).await;
    }

    /// Ends the process, waits until it is gone, and queries how the transaction ended. Returns
    /// what is known after two fifths of `settle_timeout` at the latest.
    async fn end(&self, known: TransactionMark<'_>, sessions: &Sessions) -> Findings {
        // The time is `settle_timeout`. COMMIT or ROLLBACK had half of it, two fifths are for the
        // queries, and the last tenth is for the response.
        let deadline = Instant::now() + sessions.settle_timeout() * 2 / 5;
        let mut seen = Findings::default();
        let querying = async {
            loop {
                match self.query(&known, sessions.settings(), &mut seen).await {
                    Ok(Progress::Done) => return,
                    Ok(Progress::StillRunning) => {}
                    Err(error) => tracing::debug!(
                        %error,
                        "could not query how a transaction ended; trying again"
                    ),
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        // If the deadline passes, `seen` still holds what was found out before.
        let _elapsed = timeout_at(deadline, querying).await;
        seen
    }

    async fn query(
        &self,
        known: &TransactionMark<'_>,
        settings: &Settings,
        seen: &mut Findings,
    ) -> sqlx::Result<Progress> {
        let mut connection = settings.connect_options().connect().await?;
        let is_same = match &self.incarnation {
            Some(before) => incarnation(&mut connection).await? == **before,
            None => false,
        };
        let Self { pid, started, .. } = self;
        let condition = known.condition();
        // If COMMIT is waiting for a standby (`SyncRep`), do not end the process: otherwise the
        // transaction would be committed on this server alone.
        let end = format!(
            "SELECT ({condition})::text, (wait_event IS NOT DISTINCT FROM 'SyncRep')::text, \
                 backend_xid::text, CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' \
                 THEN pg_terminate_backend(pid) END \
             FROM pg_stat_activity WHERE pid = {pid} AND backend_start = '{started}'"
        );
        let process = sqlx::raw_sql(AssertSqlSafe(end))
            .fetch_optional(&mut connection)
            .await?;
        if let Some(process) = process {
            let (is_in_transaction, waits): (&str, &str) =
                (process.try_get(0)?, process.try_get(1)?);
            if seen.was_in_transaction.is_none() {
                let is_in_transaction = is_in_transaction == "true";
                seen.was_in_transaction = Some(is_in_transaction);
                let id: Option<&str> = process.try_get(2)?;
                seen.id = id.filter(|_| is_in_transaction).map(full_id);
            }
            return Ok(match waits {
                "true" => Progress::Done,
                _ => Progress::StillRunning,
            });
        }
        // The process is not in the list. This connection may lead to another server, which does
        // not know the process. So the process counts as gone only if the incarnation is the same,
        // if this method has seen the process before, or if the incarnations cannot be compared.
        seen.is_gone = is_same || self.incarnation.is_none() || seen.was_in_transaction.is_some();
        let id = match (known, &seen.id) {
            _ if !is_same => return Ok(Progress::Done),
            (TransactionMark::Id(id), _) => format!("'{id}'"),
            // A COMMIT may have been running when the process was ended, so query the status.
            (_, Some(id)) => id.clone(),
            (_, None) => return Ok(Progress::Done),
        };
        let status = format!("SELECT pg_xact_status({id})");
        let status = sqlx::raw_sql(AssertSqlSafe(status))
            .fetch_one(&mut connection)
            .await?;
        let status: Option<&str> = status.try_get(0)?;
        seen.fate = match status {
            Some("committed") => Some(Fate::Committed),
            Some("aborted") => Some(Fate::RolledBack),
            Some(_) => return Ok(Progress::StillRunning),
            None => None,
        };
        Ok(Progress::Done)
    }
}

/// What is known of a process that is being ended.
#[derive(Default)]
struct Findings {
    /// Whether the process was in the transaction when it was first seen.
    was_in_transaction: Option<bool>,
    /// The id that the transaction had at that time, as an SQL expression.
    id: Option<String>,
    is_gone: bool,
    fate: Option<Fate>,
}

/// Returns an SQL expression for the 64-bit id of a transaction. `id` has only the low 32 bits, as
/// `pg_stat_activity` shows them; the expression adds the epoch.
fn full_id(id: &str) -> String {
    format!(
        "(SELECT (next - next % 4294967296 + {id} \
             - CASE WHEN {id} > next % 4294967296 THEN 4294967296 ELSE 0 END)::text::xid8 \
         FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric) AS ids (next))"
    )
}

enum Progress {
    /// No more can be found out.
    Done,
    /// The process is not gone yet, or its transaction has not ended.
    StillRunning,
}

/// All that is needed to end a transaction from outside its session.
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
            let seen = backend
                .end(TransactionMark::of(transaction), sessions)
                .await;
            let may_be_kept = transaction.writes
                && match (seen.fate, seen.was_in_transaction) {
                    (Some(Fate::Committed), _) | (_, Some(false)) => true,
                    (Some(Fate::RolledBack), _) => false,
                    (None, Some(true)) => !seen.is_gone && transaction.may_be_committed(),
                    (None, None) => transaction.may_be_committed(),
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
