//! All SQL for the table `todos`. Both backends run the same statements.

use rocket_tx::db::UrlConnection;
use rocket_tx::with_backend;

use super::todo::{Change, NewTodo, Row};

pub(super) async fn list(connection: &mut UrlConnection) -> sqlx::Result<Vec<Row>> {
    with_backend!(connection, |db| {
        sqlx::query_as(r#"SELECT id, title, completed, "order", shared FROM todos ORDER BY id"#)
            .fetch_all(db)
            .await
    })
}

pub(super) async fn find(connection: &mut UrlConnection, id: i64) -> sqlx::Result<Option<Row>> {
    with_backend!(connection, |db| {
        sqlx::query_as(r#"SELECT id, title, completed, "order", shared FROM todos WHERE id = $1"#)
            .bind(id)
            .fetch_optional(db)
            .await
    })
}

pub(super) async fn insert(connection: &mut UrlConnection, new: &NewTodo) -> sqlx::Result<Row> {
    with_backend!(connection, |db| {
        sqlx::query_as(
            r#"INSERT INTO todos (title, completed, "order") VALUES ($1, $2, $3)
               RETURNING id, title, completed, "order", shared"#,
        )
        .bind(&new.title)
        .bind(new.completed)
        .bind(new.order)
        .fetch_one(db)
        .await
    })
}

pub(super) async fn update(
    connection: &mut UrlConnection,
    id: i64,
    change: &Change,
) -> sqlx::Result<Option<Row>> {
    with_backend!(connection, |db| {
        sqlx::query_as(
            r#"UPDATE todos
               SET title = COALESCE($2, title),
                   completed = COALESCE($3, completed),
                   "order" = COALESCE($4, "order")
               WHERE id = $1
               RETURNING id, title, completed, "order", shared"#,
        )
        .bind(id)
        .bind(&change.title)
        .bind(change.completed)
        .bind(change.order)
        .fetch_optional(db)
        .await
    })
}

pub(super) async fn share(connection: &mut UrlConnection, id: i64) -> sqlx::Result<Option<Row>> {
    with_backend!(connection, |db| {
        sqlx::query_as(
            r#"UPDATE todos SET shared = TRUE WHERE id = $1
               RETURNING id, title, completed, "order", shared"#,
        )
        .bind(id)
        .fetch_optional(db)
        .await
    })
}

pub(super) async fn remove(connection: &mut UrlConnection, id: i64) -> sqlx::Result<bool> {
    let removed = with_backend!(connection, |db| {
        sqlx::query("DELETE FROM todos WHERE id = $1")
            .bind(id)
            .execute(db)
            .await?
            .rows_affected()
    });
    Ok(removed == 1)
}

pub(super) async fn clear(connection: &mut UrlConnection) -> sqlx::Result<u64> {
    with_backend!(connection, |db| {
        Ok(sqlx::query("DELETE FROM todos")
            .execute(db)
            .await?
            .rows_affected())
    })
}
