//! What stands between this process and the server, found out at launch.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Row};
use tokio::time::timeout;

use super::session::Live;
use super::sessions::{may_pass, no_answer, patiently};
use super::settings::Settings;
use crate::db::OpenError;

/// protocol_violation: a pooler's answer to a startup parameter that it does not know.
const PROTOCOL_VIOLATION: &str = "08P01";

/// What is known once the first session is open.
pub(super) struct Opened {
    pub(super) settings: Settings,
    pub(super) first: Live,
}

/// Opens the first session, and finds out how sessions to this address are set. Tries again for
/// `limit`, while the server starts or is not there yet; nothing here waits for longer than that.
///
/// # Errors
///
/// [`OpenError::SharedSessions`] behind a pooler that gives a client another session with each
/// transaction; [`OpenError::OptionsDropped`]; what the connection met.
pub(super) async fn open(
    by_startup: Settings,
    by_statements: Settings,
    limit: Duration,
) -> Result<Opened, OpenError> {
    let options = by_startup.session_options();
    // A parameter that is refused once is refused always, though the session ends with it.
    let may_pass_unrefused = |error: &sqlx::Error| may_pass(error) && !is_refusal(error);
    let refused = match patiently(|| options.connect(), may_pass_unrefused, limit).await {
        Ok(connection) => {
            must_own_its_session(connection, &by_startup, limit).await?;
            match patiently(|| Live::open(&by_startup), may_pass, limit).await {
                Ok(first) => {
                    return Ok(Opened {
                        settings: by_startup,
                        first,
                    });
                }
                // The settings did not get through.
                Err(sqlx::Error::Configuration(_)) => None,
                Err(error) => return Err(OpenError::Database(error)),
            }
        }
        Err(error) => {
            if !is_refusal(&error) {
                return Err(OpenError::Database(error));
            }
            Some(error)
        }
    };
    if by_statements.session_options().get_options().is_some() {
        return Err(OpenError::OptionsDropped);
    }
    // What is refused again is not a parameter: the pooler may not reach the server yet.
    let options = by_statements.session_options();
    match patiently(|| options.connect(), may_pass, limit).await {
        Ok(connection) => must_own_its_session(connection, &by_statements, limit).await?,
        // Not because of the parameters, then.
        Err(error) => return Err(OpenError::Database(refused.unwrap_or(error))),
    }
    let first = patiently(|| Live::open(&by_statements), may_pass, limit).await?;
    tracing::info!("a pooler drops startup parameters; statements set the sessions instead");
    Ok(Opened {
        settings: by_statements,
        first,
    })
}

fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some(PROTOCOL_VIOLATION)
}

/// Refuses a pooler in transaction or statement mode. Each of two connections is asked, in turn,
/// for the process that serves it: each must have one, and keep it.
async fn must_own_its_session(
    one: PgConnection,
    settings: &Settings,
    limit: Duration,
) -> Result<(), OpenError> {
    // Without a second connection nothing can be compared; a server that is full says so later.
    let options = settings.session_options();
    let Ok(Ok(other)) = timeout(limit, options.connect()).await else {
        return Ok(());
    };
    let compared = timeout(limit, have_a_session_each(one, other)).await;
    match compared.unwrap_or_else(|_| Err(no_answer(limit)))? {
        true => Ok(()),
        false => Err(OpenError::SharedSessions),
    }
}

async fn have_a_session_each(mut one: PgConnection, mut other: PgConnection) -> sqlx::Result<bool> {
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
