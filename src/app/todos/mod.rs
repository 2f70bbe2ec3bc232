//! `/todos`, by the [Todo-Backend](https://todobackend.com) contract, and sharing one.
//!
//! Every change is written to both databases. No handler commits or rolls back: the status of its
//! response decides.

mod store;

use rocket::http::Status;
use rocket::http::uri::Host;
use rocket::response::status::Created;
use rocket::serde::json::Json;
use rocket::{delete, get, patch, post};
use rocket_tx::{Begin, Read, Tx};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::audit::AuditLog;
use crate::app::databases::Main;
use crate::app::downstream::Downstream;
use crate::app::http::{
    BadBody, Body, Endpoints, Error, Fails, Rules, SafeInteger, SingleLineText, check_text,
    endpoints, safe_integer,
};

use self::store::Row;

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("todos": list, create, clear, find, change, remove, share)
}

/// The host in the client's URL: todos carry their full address.
type ClientHost<'r> = Option<&'r Host<'r>>;

/// All todos.
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
#[utoipa::path(responses((status = 204, description = "There are none."), Fails<503>))]
#[delete("/todos")]
async fn clear(mut tx: Tx<Main>, audit: AuditLog) -> Result<Status, Error> {
    let gone = store::clear(&mut tx).await?;
    audit.record("todos cleared", &gone.to_string()).await?;
    Ok(Status::NoContent)
}

/// One todo.
#[utoipa::path(responses((status = 200, description = "Found.", body = Todo), Fails<404>, Fails<503>))]
#[get("/todos/<id>")]
async fn find(id: i64, mut read: Read<Main>, host: ClientHost<'_>) -> Result<Json<Todo>, Error> {
    let row = store::find(&mut read, id)
        .await?
        .ok_or_else(|| no_such_todo(id))?;
    Ok(Json(Todo::new(row, host)))
}

/// Changes a todo. What is left out stays.
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

/// Marks a todo as shared, then tells another service, which may refuse: then it is not shared.
///
/// The transaction is open while the other service thinks, on purpose: on SQLite every other
/// writer waits as long. That is why `downstream_timeout` is short.
#[utoipa::path(responses(
    (status = 200, description = "Shared, and the other service knows.", body = Todo),
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
    downstream.tell(&todo).await?;
    Ok(Json(todo))
}

/// A todo, for clients.
#[derive(Debug, Serialize, ToSchema)]
struct Todo {
    id: i64,
    title: String,
    completed: bool,
    #[schema(required)]
    order: Option<i64>,
    shared: bool,
    url: String,
}

/// The body that creates a todo.
#[derive(Debug, Deserialize, ToSchema)]
struct NewTodo {
    #[schema(value_type = SingleLineText)]
    title: String,
    #[serde(default)]
    completed: bool,
    #[serde(default, deserialize_with = "safe_integer")]
    #[schema(value_type = Option<SafeInteger>)]
    order: Option<i64>,
}

/// The body that changes a todo. Fields that are left out stay.
#[derive(Debug, Deserialize, ToSchema)]
struct Change {
    #[schema(value_type = Option<SingleLineText>)]
    title: Option<String>,
    completed: Option<bool>,
    #[serde(default, deserialize_with = "safe_integer")]
    #[schema(value_type = Option<SafeInteger>)]
    order: Option<i64>,
}

impl Rules for NewTodo {
    fn check(&self) -> Result<(), String> {
        check_text("title", &self.title, 500)
    }
}

impl Rules for Change {
    fn check(&self) -> Result<(), String> {
        let title = self.title.as_deref();
        title.map_or(Ok(()), |title| check_text("title", title, 500))
    }
}

impl Todo {
    fn new(row: Row, host: ClientHost<'_>) -> Self {
        let Row {
            id,
            title,
            completed,
            order,
            shared,
        } = row;
        let base = host.map(|host| format!("http://{host}"));
        Self {
            url: format!("{}/todos/{id}", base.unwrap_or_default()),
            id,
            title,
            completed,
            order,
            shared,
        }
    }
}

fn no_such_todo(id: i64) -> Error {
    Error::not_found("no-such-todo", format!("there is no todo {id}"))
}
