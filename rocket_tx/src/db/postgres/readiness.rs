//! Checks whether the server replies and takes writes, on a connection that requests do not use.

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Row};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::settings::Settings;
use crate::db::readiness::{LIMIT, NotReady, Readiness};

/// Checks the server, and keeps the connection open for the next check.
#[derive(Default)]
pub(super) struct Probe {
    last: Readiness,
    kept: Mutex<Option<PgConnection>>,
}

impl Probe {
    pub(super) async fn ready(&self, settings: &Settings) -> Result<(), NotReady> {
        self.last.latest(self.check(settings)).await
    }

    async fn check(&self, settings: &Settings) -> Result<(), NotReady> {
        let mut kept = self.kept.lock().await;
        if let Some(mut connection) = kept.take() {
            let reply = timeout(LIMIT / 3, takes_writes(&mut connection)).await;
            if let Ok(Ok(true)) = reply {
                *kept = Some(connection);
                return Ok(());
            }
            // The kept connection may lead to a server that the address no longer points to. Check
            // again on a new connection.
        }
        let mut connection = match settings.connect_options().connect().await {
            Ok(connection) => connection,
            // The server is up, but has no free connection for this check. Requests have their own
            // connections, so the database counts as ready.
            Err(error) if is_full(&error) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, "the database is not ready");
                return Err(NotReady::Unreachable);
            }
        };
        match takes_writes(&mut connection).await {
            Ok(true) => {
                *kept = Some(connection);
                Ok(())
            }
            Ok(false) => Err(NotReady::ReadOnly),
            Err(error) => {
                tracing::debug!(%error, "the database is not ready");
                Err(NotReady::Unreachable)
            }
        }
    }
}

/// Returns whether transactions can write. `transaction_read_only` is on if the server is read-only
/// by default, and also on a standby.
async fn takes_writes(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let row = sqlx::raw_sql("SHOW transaction_read_only")
        .fetch_one(connection)
        .await?;
    Ok(row.try_get::<&str, _>(0)? == "off")
}

fn is_full(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("53300")
}
