//! The table `todo_list`: one row for each aggregate, written in the transaction that stores its
//! events.

use rocket_tx::db::Connection;
use rocket_tx::with_backend;
use rocket_tx_aggregates::aggregate::{Aggregate, EventRecord, Projection};
use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;

use crate::http::Page;

use super::todo::Todo;

/// The projection that writes the row of an aggregate whenever its events are stored.
pub(crate) struct TodoList;

impl Projection<Todo, Connection> for TodoList {
    async fn project(
        &self,
        connection: &mut Connection,
        todo: &Todo,
        _events: &[EventRecord],
    ) -> sqlx::Result<()> {
        with_backend!(connection, |db| sqlx::query(
            "INSERT INTO todo_list (id, user_id, task, completed, version) \
             VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (id) DO UPDATE \
             SET user_id = excluded.user_id, task = excluded.task, \
                 completed = excluded.completed, version = excluded.version"
        )
        .bind(todo.id())
        .bind(&todo.user_id)
        .bind(&todo.task)
        .bind(todo.completed)
        .bind(i64::try_from(todo.version()).unwrap_or(i64::MAX))
        .execute(db)
        .await
        .map(drop))
    }
}

/// An entry of the list.
#[derive(Debug, Serialize, FromRow, ToSchema)]
#[schema(as = ListedAggregate)]
pub(super) struct Row {
    id: String,
    user_id: String,
    task: String,
    completed: bool,
    version: i64,
}

pub(super) async fn page(
    connection: &mut Connection,
    page: Page<String>,
) -> sqlx::Result<Vec<Row>> {
    with_backend!(connection, |db| sqlx::query_as(
        "SELECT id, user_id, task, completed, version FROM todo_list \
         WHERE id > $1 ORDER BY id LIMIT $2"
    )
    .bind(page.after.unwrap_or_default())
    .bind(i64::from(page.limit))
    .fetch_all(db)
    .await)
}
