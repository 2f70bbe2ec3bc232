//! The SQL statements of the faults. They fail on purpose, or make the request's transaction fail.

use rocket_tx::db::UrlConnection;
use rocket_tx::with_backend;

/// Inserts a row that breaks a deferred foreign key, which COMMIT checks. The transaction can then
/// only roll back, and the rollback removes the temporary table too.
pub(super) async fn break_a_deferred_constraint(connection: &mut UrlConnection) {
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
        tracing::warn!(%error, "cannot inject the fault `commit`");
    }
}

/// Runs a statement that fails, and ignores the error. On Postgres any error aborts the
/// transaction. On SQLite the statement has to demand the rollback: `OR ROLLBACK`.
pub(super) async fn swallow_an_error(connection: &mut UrlConnection) {
    let sql = match connection {
        UrlConnection::Sqlite(_) => "INSERT OR ROLLBACK INTO todos (title) VALUES (NULL)",
        UrlConnection::Postgres(_) => "INSERT INTO todos (title) VALUES (NULL)",
    };
    let _swallowed = with_backend!(connection, |db| sqlx::query(sql)
        .execute(db)
        .await
        .map(drop));
}

/// Ends the Postgres session, as an administrator can. On SQLite it does nothing.
pub(super) async fn end_the_session(connection: &mut UrlConnection) {
    if let UrlConnection::Postgres(connection) = connection {
        let ended = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())");
        // The statement fails because it ends its own session.
        let _gone = ended.execute(&mut **connection).await;
    }
}

/// Gives the lease of `stream` to another holder, as if this process had been stopped until the
/// lease expired.
pub(super) async fn hand_the_lease_over(
    connection: &mut UrlConnection,
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
