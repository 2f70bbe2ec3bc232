//! The table `todo_list`: one row for each aggregate, written in the transaction that stores its
//! events.

use rocket_tx::db::UrlConnection;
use rocket_tx::with_backend;
use rocket_tx_aggregates::aggregate::{Aggregate, Change, EventRecord, Projection};
use serde::Serialize;
use sqlx::{FromRow, QueryBuilder};
use utoipa::ToSchema;

use crate::http::Page;

use super::todo::Todo;

/// The projection that writes the row of an aggregate whenever its events are stored.
pub(crate) struct TodoList;

impl Projection<Todo, UrlConnection> for TodoList {
    async fn project(
        &self,
        connection: &mut UrlConnection,
        todo: &Todo,
        events: &[EventRecord],
    ) -> sqlx::Result<()> {
        let change = Change {
            aggregate: todo,
            events,
        };
        self.project_all(connection, &[change]).await
    }

    /// Writes all rows with one statement.
    async fn project_all(
        &self,
        connection: &mut UrlConnection,
        changes: &[Change<'_, Todo>],
    ) -> sqlx::Result<()> {
        with_backend!(connection, |db| {
            let mut upsert =
                QueryBuilder::new("INSERT INTO todo_list (id, user_id, task, completed, version) ");
            upsert.push_values(changes, |mut row, change| {
                let todo = change.aggregate;
                row.push_bind(todo.id())
                    .push_bind(&todo.user_id)
                    .push_bind(&todo.task)
                    .push_bind(todo.completed)
                    .push_bind(i64::try_from(todo.version()).unwrap_or(i64::MAX));
            });
            upsert.push(
                " ON CONFLICT (id) DO UPDATE \
                 SET user_id = excluded.user_id, task = excluded.task, \
                     completed = excluded.completed, version = excluded.version",
            );
            upsert.build().execute(db).await.map(drop)
        })
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
    connection: &mut UrlConnection,
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
