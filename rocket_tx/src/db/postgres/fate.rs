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
use super::settings::{Settings, literal};
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

/// How a transaction is told from others of its session.
enum TransactionMark<'a> {
    Id(&'a str),
    /// By the name of its session.
    Mark(&'a str),
    /// Not at all.
    Nothing,
}

impl<'a> TransactionMark<'a> {
    fn of(transaction: &'a OpenTransaction) -> Self {
        match (&transaction.id, &transaction.mark) {
            (Some(id), _) => Self::Id(id),
            (None, Some(mark)) => Self::Mark(mark),
            (None, None) => Self::Nothing,
        }
    }

    /// Whether a row of the server's list of sessions is at it.
    fn stands(&self) -> String {
        match self {
            Self::Id(id) => format!("backend_xid IS NOT DISTINCT FROM '{id}'::xid8::xid"),
            Self::Mark(mark) => format!("application_name = {}", literal(mark)),
            Self::Nothing => "FALSE".into(),
        }
    }
}

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
        let fate = self.end(TransactionMark::Id(xid), sessions).await.fate;
        tracing::warn!(
            ?fate,
            xid,
            "the end of a transaction was not answered; the server was asked what became of it"
        );
        fate
    }

    /// Ends the process, whatever it is at, and waits until it is gone; not for ever.
    ///
    /// Dropped half-way, it may have ended it.
    pub(super) async fn stop(&self, sessions: &Sessions) {
        self.end(TransactionMark::Nothing, sessions).await;
    }

    /// Ends the process, and waits until it is gone.
    async fn end(&self, known: TransactionMark<'_>, sessions: &Sessions) -> Findings {
        // What is left is for the answer.
        let deadline = Instant::now() + sessions.settle_timeout() * 2 / 5;
        let mut seen = Findings::default();
        let asking = async {
            loop {
                match self.ask(&known, sessions.settings(), &mut seen).await {
                    Ok(Progress::Done) => return,
                    Ok(Progress::StillRunning) => {}
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
        let stands = known.stands();
        // COMMIT may wait for a standby: ended there, it would stand on this server alone.
        let end = format!(
            "SELECT ({stands})::text, (wait_event IS NOT DISTINCT FROM 'SyncRep')::text, \
                 backend_xid::text, CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' \
                 THEN pg_terminate_backend(pid) END \
             FROM pg_stat_activity WHERE pid = {pid} AND backend_start = '{started}'"
        );
        let process = sqlx::raw_sql(AssertSqlSafe(end))
            .fetch_optional(&mut connection)
            .await?;
        if let Some(process) = process {
            let (stands, waits): (&str, &str) = (process.try_get(0)?, process.try_get(1)?);
            if seen.stood.is_none() {
                let stands = stands == "true";
                seen.stood = Some(stands);
                let id: Option<&str> = process.try_get(2)?;
                seen.id = id.filter(|_| stands).map(full_id);
            }
            return Ok(match waits {
                "true" => Progress::Done,
                _ => Progress::StillRunning,
            });
        }
        // Another server knows nothing of it, unless the process was seen there.
        seen.is_gone = is_same || self.incarnation.is_none() || seen.stood.is_some();
        let id = match (known, &seen.id) {
            _ if !is_same => return Ok(Progress::Done),
            (TransactionMark::Id(id), _) => format!("'{id}'"),
            // COMMIT may have been under way when it was ended.
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

/// What is known of a process that was to be ended.
#[derive(Default)]
struct Findings {
    /// At first sight it was at the transaction.
    stood: Option<bool>,
    /// The id that it had got by then, as an expression of the server's.
    id: Option<String>,
    is_gone: bool,
    fate: Option<Fate>,
}

/// An id of 32 bits, as the server's list of sessions shows it, with the epoch that it is of.
fn full_id(id: &str) -> String {
    format!(
        "(SELECT (next - next % 4294967296 + {id} \
             - CASE WHEN {id} > next % 4294967296 THEN 4294967296 ELSE 0 END)::text::xid8 \
         FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric) AS ids (next))"
    )
}

enum Progress {
    /// More cannot be known.
    Done,
    /// The process is not gone yet.
    StillRunning,
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
            let seen = backend
                .end(TransactionMark::of(transaction), sessions)
                .await;
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
