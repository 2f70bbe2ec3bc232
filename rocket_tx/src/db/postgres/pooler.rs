//! Connects at launch, and detects a pooler between this process and the server.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Row};
use tokio::time::timeout;

use super::session::Live;
use super::sessions::{connect_with_retries, is_transient, no_reply};
use super::settings::Settings;
use crate::db::OpenError;
use crate::db::error::is_refused_login;

/// protocol_violation: a pooler's reply to a startup parameter that it does not know.
const PROTOCOL_VIOLATION: &str = "08P01";

/// The first session, and the settings that it was opened with.
pub(super) struct Opened {
    pub(super) settings: Settings,
    pub(super) first: Live,
}

/// Opens the first session, and finds out whether settings can go into the startup message or must
/// be set by statements. While the server is starting or cannot be reached, each step that connects
/// is retried for `limit`.
///
/// # Errors
///
/// [`OpenError::SharedSessions`] if a pooler gives the client another session for each transaction;
/// [`OpenError::OptionsDropped`] if the URL has `options` and a pooler drops them; the error of the
/// connection otherwise.
pub(super) async fn open(
    by_startup: Settings,
    by_statements: Settings,
    limit: Duration,
) -> Result<Opened, OpenError> {
    let options = by_startup.session_options();
    // Do not retry after a refusal: a parameter that is refused once is always refused. A refusal
    // also ends the session, so `is_transient` alone would retry.
    let may_retry = |error: &sqlx::Error| is_transient(error) && !is_refusal(error);
    let refused = match connect(&options, may_retry, limit).await {
        Ok(connection) => {
            require_own_sessions(connection, &by_startup, limit).await?;
            match connect_with_retries(|| Live::open(&by_startup), is_transient, limit).await {
                Ok(first) => {
                    return Ok(Opened {
                        settings: by_startup,
                        first,
                    });
                }
                // The pooler dropped the settings.
                Err(sqlx::Error::Configuration(_)) => None,
                Err(error) => return Err(OpenError::Database(error)),
            }
        }
        Err(error) if is_refusal(&error) => Some(error),
        Err(error) => return Err(OpenError::Database(error)),
    };
    if by_statements.session_options().get_options().is_some() {
        return Err(OpenError::OptionsDropped);
    }
    // The startup message no longer carries the settings. So a refusal now has another reason and
    // may be retried: the pooler may not reach the server yet.
    let options = by_statements.session_options();
    match connect(&options, is_transient, limit).await {
        Ok(connection) => require_own_sessions(connection, &by_statements, limit).await?,
        // Connecting fails without the parameters too, so they were not the reason of the first
        // refusal. Report the first refusal.
        Err(error) => return Err(OpenError::Database(refused.unwrap_or(error))),
    }
    let first = connect_with_retries(|| Live::open(&by_statements), is_transient, limit).await?;
    tracing::info!(
        "a pooler drops startup parameters; statements set the sessions' settings instead"
    );
    Ok(Opened {
        settings: by_statements,
        first,
    })
}

/// Connects. After the first transient error it logs that it retries, so that a launch which waits for
/// its server is not silent. A refused login is not retried: it would be refused again.
async fn connect(
    options: &PgConnectOptions,
    is_transient: impl Fn(&sqlx::Error) -> bool,
    limit: Duration,
) -> sqlx::Result<PgConnection> {
    let mut has_warned = false;
    let may_retry = |error: &sqlx::Error| {
        let may_retry = is_transient(error) && !is_refused_login(error);
        if may_retry && !has_warned {
            has_warned = true;
            // Without the address: if a URL has special characters that are not encoded, a part of
            // its password stands in the place of the host.
            tracing::warn!(
                "the Postgres server cannot be used yet; retrying for {limit:?}: {error}"
            );
        }
        may_retry
    };
    connect_with_retries(|| options.connect(), may_retry, limit).await
}

fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some(PROTOCOL_VIOLATION)
}

/// Rejects a pooler in transaction or statement mode. Queries two connections in turn for the
/// server process that serves them. Each connection must have its own process and keep it.
async fn require_own_sessions(
    one: PgConnection,
    settings: &Settings,
    limit: Duration,
) -> Result<(), OpenError> {
    // Without a second connection there is nothing to compare. If the server is full, a later
    // attempt to connect reports that.
    let options = settings.session_options();
    let Ok(Ok(other)) = timeout(limit, options.connect()).await else {
        return Ok(());
    };
    let compared = timeout(limit, have_own_sessions(one, other)).await;
    match compared.unwrap_or_else(|_| Err(no_reply(limit)))? {
        true => Ok(()),
        false => Err(OpenError::SharedSessions),
    }
}

async fn have_own_sessions(mut one: PgConnection, mut other: PgConnection) -> sqlx::Result<bool> {
    const TURNS: usize = 3;

    let mut seen = Vec::new();
    for _ in 0..TURNS {
        for connection in [&mut one, &mut other] {
            let row = sqlx::raw_sql("SELECT pg_backend_pid()::text")
                .fetch_one(connection)
                .await?;
            seen.push(row.try_get::<String, _>(0)?);
        }
    }
    let is_kept = seen.iter().step_by(2).all(|pid| *pid == seen[0])
        && seen.iter().skip(1).step_by(2).all(|pid| *pid == seen[1]);
    Ok(is_kept && seen[0] != seen[1])
}
