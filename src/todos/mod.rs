//! `/todos`, by the [Todo-Backend](https://todobackend.com) contract, and `POST /todos/<id>/share`.
//!
//! Every change is written to both databases: the todo to `main`, and an audit entry to `audit`. No
//! handler commits or rolls back. The status of its response decides.

mod store;
mod todo;

use rocket::http::Status;
use rocket::response::status::Created;
use rocket::serde::json::Json;
use rocket::{delete, get, patch, post};
use rocket_tx::{Begin, Read, Tx};

use crate::audit::AuditLog;
use crate::databases::Main;
use crate::downstream::Downstream;
use crate::http::{BadBody, Body, Endpoints, Error, Fails, endpoints};

use self::todo::{Change, ClientHost, NewTodo, Todo};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("todos": list, create, clear, find, change, remove, share)
}

/// Lists all todos.
#[utoipa::path(responses((status = 200, description = "Oldest first.", body = Vec<Todo>), Fails<503>))]
#[get("/todos")]
async fn list(mut read: Read<Main>, host: ClientHost<'_>) -> Result<Json<Vec<Todo>>, Error> {
    let rows = store::list(&mut read).await?;
    Ok(Json(
        rows.into_iter().map(|row| Todo::new(row, host)).collect(),
    ))
}

/// Creates a todo.
#[utoipa::path(
    request_body = NewTodo,
    responses((status = 201, description = "Created.", body = Todo), BadBody, Fails<503>)
)]
#[post("/todos", data = "<new>")]
async fn create(
    new: Body<NewTodo>,
    main: Begin<Main>,
    audit: AuditLog,
    host: ClientHost<'_>,
) -> Result<Created<Json<Todo>>, Error> {
    let new = new?.0;
    let mut tx = main.begin().await?;
    let todo = Todo::new(store::insert(&mut tx, &new).await?, host);
    audit.record("todo created", &todo.url).await?;
    Ok(Created::new(todo.url.clone()).body(Json(todo)))
}

/// Removes all todos.
#[utoipa::path(responses((status = 204, description = "All todos were removed."), Fails<503>))]
#[delete("/todos")]
async fn clear(mut tx: Tx<Main>, audit: AuditLog) -> Result<Status, Error> {
    let removed = store::clear(&mut tx).await?;
    audit.record("todos cleared", &removed.to_string()).await?;
    Ok(Status::NoContent)
}

/// Returns one todo.
#[utoipa::path(responses((status = 200, description = "The todo.", body = Todo), Fails<404>, Fails<503>))]
#[get("/todos/<id>")]
async fn find(id: i64, mut read: Read<Main>, host: ClientHost<'_>) -> Result<Json<Todo>, Error> {
    let row = store::find(&mut read, id)
        .await?
        .ok_or_else(|| no_such_todo(id))?;
    Ok(Json(Todo::new(row, host)))
}

/// Changes a todo.
///
/// Fields that are left out keep their values.
#[utoipa::path(
    request_body = Change,
    responses((status = 200, description = "Changed.", body = Todo), BadBody, Fails<404>, Fails<503>)
)]
#[patch("/todos/<id>", data = "<change>")]
async fn change(
    id: i64,
    change: Body<Change>,
    main: Begin<Main>,
    audit: AuditLog,
    host: ClientHost<'_>,
) -> Result<Json<Todo>, Error> {
    let change = change?.0;
    let mut tx = main.begin().await?;
    let row = store::update(&mut tx, id, &change)
        .await?
        .ok_or_else(|| no_such_todo(id))?;
    let todo = Todo::new(row, host);
    audit.record("todo changed", &todo.url).await?;
    Ok(Json(todo))
}

/// Removes a todo.
#[utoipa::path(responses((status = 204, description = "Removed."), Fails<404>, Fails<503>))]
#[delete("/todos/<id>")]
async fn remove(id: i64, mut tx: Tx<Main>, audit: AuditLog) -> Result<Status, Error> {
    if !store::remove(&mut tx, id).await? {
        return Err(no_such_todo(id));
    }
    audit.record("todo removed", &id.to_string()).await?;
    Ok(Status::NoContent)
}

/// Marks a todo as shared and notifies the downstream service.
///
/// If the call fails, the todo is not shared. The transaction stays open during the call, so that
/// the change can still be rolled back. On SQLite every other writer waits for the end of the call:
/// keep `downstream_timeout` short.
#[utoipa::path(responses(
    (status = 200, description = "Shared. The downstream service was notified.", body = Todo),
    Fails<404>, Fails<502>, Fails<503>, Fails<504>
))]
#[post("/todos/<id>/share")]
async fn share(
    id: i64,
    mut tx: Tx<Main>,
    audit: AuditLog,
    downstream: Downstream<'_>,
    host: ClientHost<'_>,
) -> Result<Json<Todo>, Error> {
    let row = store::share(&mut tx, id)
        .await?
        .ok_or_else(|| no_such_todo(id))?;
    let todo = Todo::new(row, host);
    audit.record("todo shared", &todo.url).await?;
    downstream.notify(&todo).await?;
    Ok(Json(todo))
}

fn no_such_todo(id: i64) -> Error {
    Error::not_found("no-such-todo", format!("there is no todo {id}"))
}
