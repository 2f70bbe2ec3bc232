//! Statements that go wrong on purpose, in the request's own transaction.

use rocket_tx::db::Connection;
use rocket_tx::with_backend;

/// Adds a row whose foreign key is checked by COMMIT, and is broken. Its table goes with the
/// transaction, which can only roll back.
pub(super) async fn break_a_deferred_constraint(connection: &mut Connection) {
    let result: sqlx::Result<()> = with_backend!(connection, |db| async {
        sqlx::query(
            "CREATE TEMPORARY TABLE deferred_probe ( \
                 id     BIGINT PRIMARY KEY, \
                 parent BIGINT REFERENCES deferred_probe (id) DEFERRABLE INITIALLY DEFERRED \
             )",
        )
        .execute(&mut *db)
        .await?;
        sqlx::query("INSERT INTO deferred_probe (id, parent) VALUES (1, -1)")
            .execute(&mut *db)
            .await?;
        Ok(())
    }
    .await);
    if let Err(error) = result {
        tracing::warn!(%error, "the fault `commit` failed by itself");
    }
}

/// Runs a statement that fails, and ignores the error. On Postgres any error aborts the
/// transaction; on SQLite the statement must ask for it.
pub(super) async fn swallow_an_error(connection: &mut Connection) {
    let sql = match connection {
        Connection::Sqlite(_) => "INSERT OR ROLLBACK INTO todos (title) VALUES (NULL)",
        Connection::Postgres(_) => "INSERT INTO todos (title) VALUES (NULL)",
    };
    let _swallowed = with_backend!(connection, |db| sqlx::query(sql)
        .execute(db)
        .await
        .map(drop));
}

/// Ends the session as an administrator would. SQLite has no sessions.
pub(super) async fn end_the_session(connection: &mut Connection) {
    if let Connection::Postgres(connection) = connection {
        let ended = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())");
        // It fails, because the session is gone.
        let _gone = ended.execute(&mut **connection).await;
    }
}

/// Gives the lease to another holder, as if its own had been stopped for too long.
pub(super) async fn hand_the_lease_over(
    connection: &mut Connection,
    stream: &str,
) -> sqlx::Result<()> {
    with_backend!(connection, |db| sqlx::query(
        "UPDATE aggregate_locks SET token = 'expire-lease', owner_id = 'the fault expire-lease' \
         WHERE lock_key = $1"
    )
    .bind(stream)
    .execute(db)
    .await
    .map(drop))
}
