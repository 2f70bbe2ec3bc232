//! Statements that go wrong on purpose, in the request's own transaction.

use crate::db::Connection;

/// Adds a row whose foreign key is checked by COMMIT, and is broken.
pub(super) async fn break_a_deferred_constraint(connection: &mut Connection) {
    let result = crate::with_backend!(connection, |db| {
        sqlx::query("INSERT INTO deferred_probe (id, todo_id) VALUES (1, -1)")
            .execute(db)
            .await
            .map(drop)
    });
    if let Err(error) = result {
        tracing::warn!(%error, "the fault `commit` failed by itself");
    }
}

/// A statement fails, and nobody looks. On Postgres any error aborts the transaction; on SQLite it
/// takes one that asks for it.
pub(super) async fn swallow_an_error(connection: &mut Connection) {
    let sql = match connection {
        Connection::Sqlite(_) => {
            "INSERT OR ROLLBACK INTO deferred_probe (id, todo_id) VALUES (1, NULL)"
        }
        Connection::Postgres(_) => "INSERT INTO deferred_probe (id, todo_id) VALUES (1, NULL)",
    };
    let _swallowed = crate::with_backend!(connection, |db| sqlx::query(sql)
        .execute(db)
        .await
        .map(drop));
}

/// The session ends itself, as an administrator would end it. SQLite has no sessions.
pub(super) async fn end_the_session(connection: &mut Connection) {
    if let Connection::Postgres(connection) = connection {
        let ended = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())");
        // The answer is that the session is gone.
        let _gone = ended.execute(&mut **connection).await;
    }
}

/// Somebody else has the lease from now on: what its holder finds who was stopped for too long.
pub(super) async fn hand_the_lease_over(
    connection: &mut Connection,
    stream: &str,
) -> sqlx::Result<()> {
    crate::with_backend!(connection, |db| sqlx::query(
        "UPDATE aggregate_locks SET token = 'expire-lease', owner_id = 'the fault expire-lease' \
         WHERE lock_key = $1"
    )
    .bind(stream)
    .execute(db)
    .await
    .map(drop))
}
