//! `/todos`, by the [Todo-Backend](https://todobackend.com) contract, and sharing one.
//!
//! Every change is written to both databases. No handler says commit or rollback: what the client
//! is told decides.

mod store;

use rocket::http::Status;
use rocket::http::uri::Host;
use rocket::response::status::Created;
use rocket::serde::json::Json;
use rocket::{Route, delete, get, patch, post, routes};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Begin, Read, Tx};

use self::store::Row;
use super::audit::Trail;
use super::body::{Body, Rules};
use super::downstream::Downstream;
use super::field::{Line, Whole, check_text, whole};
use super::openapi::{BadBody, Fails};
use super::{Error, Main};

pub(super) fn routes() -> Vec<Route> {
    routes![list, create, clear, find, change, remove, share]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, create, clear, find, change, remove, share))]
pub(super) struct Paths;

/// All todos.
#[utoipa::path(responses((status = 200, description = "Oldest first.", body = Vec<Todo>), Fails<503>))]
#[get("/todos")]
async fn list(mut read: Read<Main>, at: At<'_>) -> Result<Json<Vec<Todo>>, Error> {
    let rows = store::list(&mut read).await?;
    Ok(Json(rows.into_iter().map(|row| at.todo(row)).collect()))
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
    trail: Trail,
    at: At<'_>,
) -> Result<Created<Json<Todo>>, Error> {
    let new = new?.0;
    let mut tx = main.begin().await?;
    let todo = at.todo(store::insert(&mut tx, &new).await?);
    trail.note("todo created", &todo.url).await?;
    Ok(Created::new(todo.url.clone()).body(Json(todo)))
}

/// Removes all todos.
#[utoipa::path(responses((status = 204, description = "There are none."), Fails<503>))]
#[delete("/todos")]
async fn clear(mut tx: Tx<Main>, trail: Trail) -> Result<Status, Error> {
    let gone = store::clear(&mut tx).await?;
    trail.note("todos cleared", &gone.to_string()).await?;
    Ok(Status::NoContent)
}

/// One todo.
#[utoipa::path(responses((status = 200, description = "Found.", body = Todo), Fails<404>, Fails<503>))]
#[get("/todos/<id>")]
async fn find(id: i64, mut read: Read<Main>, at: At<'_>) -> Result<Json<Todo>, Error> {
    let row = store::find(&mut read, id)
        .await?
        .ok_or(Error::NoSuchTodo(id))?;
    Ok(Json(at.todo(row)))
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
    trail: Trail,
    at: At<'_>,
) -> Result<Json<Todo>, Error> {
    let change = change?.0;
    let mut tx = main.begin().await?;
    let row = store::update(&mut tx, id, &change)
        .await?
        .ok_or(Error::NoSuchTodo(id))?;
    let todo = at.todo(row);
    trail.note("todo changed", &todo.url).await?;
    Ok(Json(todo))
}

/// Removes a todo.
#[utoipa::path(responses((status = 204, description = "Removed."), Fails<404>, Fails<503>))]
#[delete("/todos/<id>")]
async fn remove(id: i64, mut tx: Tx<Main>, trail: Trail) -> Result<Status, Error> {
    if !store::remove(&mut tx, id).await? {
        return Err(Error::NoSuchTodo(id));
    }
    trail.note("todo removed", &id.to_string()).await?;
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
    trail: Trail,
    downstream: Downstream<'_>,
    at: At<'_>,
) -> Result<Json<Todo>, Error> {
    let row = store::share(&mut tx, id)
        .await?
        .ok_or(Error::NoSuchTodo(id))?;
    let todo = at.todo(row);
    trail.note("todo shared", &todo.url).await?;
    downstream.tell(&todo).await?;
    Ok(Json(todo))
}

/// A todo as clients see it.
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

/// What a client sends to create one.
#[derive(Debug, Deserialize, ToSchema)]
struct NewTodo {
    #[schema(value_type = Line)]
    title: String,
    #[serde(default)]
    completed: bool,
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<Whole>)]
    order: Option<i64>,
}

/// What a client sends to change one. What is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
struct Change {
    #[schema(value_type = Option<Line>)]
    title: Option<String>,
    completed: Option<bool>,
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<Whole>)]
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

/// Where the client found us: todos carry their full address.
struct At<'r>(Option<&'r Host<'r>>);

impl At<'_> {
    fn todo(&self, row: Row) -> Todo {
        let path = format!("/todos/{}", row.id);
        let url = match self.0 {
            Some(host) => format!("http://{host}{path}"),
            None => path,
        };
        let Row {
            id,
            title,
            completed,
            order,
            shared,
        } = row;
        Todo {
            id,
            title,
            completed,
            order,
            shared,
            url,
        }
    }
}

#[rocket::async_trait]
impl<'r> rocket::request::FromRequest<'r> for At<'r> {
    type Error = std::convert::Infallible;

    async fn from_request(
        request: &'r rocket::Request<'_>,
    ) -> rocket::request::Outcome<Self, Self::Error> {
        rocket::request::Outcome::Success(Self(request.host()))
    }
}
