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

use crate::{Begin, Read, Tx};

use self::store::Row;
use super::audit::Trail;
use super::body::{Body, Rules};
use super::downstream::Downstream;
use super::{Error, Main};

pub(super) fn routes() -> Vec<Route> {
    routes![list, create, clear, find, change, remove, share]
}

#[get("/todos")]
async fn list(mut read: Read<Main>, at: At<'_>) -> Result<Json<Vec<Todo>>, Error> {
    let rows = store::list(&mut read).await?;
    Ok(Json(rows.into_iter().map(|row| at.todo(row)).collect()))
}

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

#[delete("/todos")]
async fn clear(mut tx: Tx<Main>, trail: Trail) -> Result<Status, Error> {
    let gone = store::clear(&mut tx).await?;
    trail.note("todos cleared", &gone.to_string()).await?;
    Ok(Status::NoContent)
}

#[get("/todos/<id>")]
async fn find(id: i64, mut read: Read<Main>, at: At<'_>) -> Result<Json<Todo>, Error> {
    let row = store::find(&mut read, id)
        .await?
        .ok_or(Error::NoSuchTodo(id))?;
    Ok(Json(at.todo(row)))
}

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
#[derive(Debug, Serialize)]
struct Todo {
    id: i64,
    title: String,
    completed: bool,
    order: Option<i64>,
    shared: bool,
    url: String,
}

/// What a client sends to create one.
#[derive(Debug, Deserialize)]
struct NewTodo {
    title: String,
    #[serde(default)]
    completed: bool,
    order: Option<i64>,
}

/// What a client sends to change one. What is left out stays.
#[derive(Debug, Deserialize)]
struct Change {
    title: Option<String>,
    completed: Option<bool>,
    order: Option<i64>,
}

impl Rules for NewTodo {
    fn check(&self) -> Result<(), String> {
        check_title(&self.title)
    }
}

impl Rules for Change {
    fn check(&self) -> Result<(), String> {
        self.title.as_deref().map_or(Ok(()), check_title)
    }
}

fn check_title(title: &str) -> Result<(), String> {
    if title.trim().is_empty() {
        Err("`title` must not be empty".into())
    } else if title.chars().count() > 500 {
        Err("`title` must be 500 characters at most".into())
    } else if title.chars().any(char::is_control) {
        Err("`title` must not contain control characters".into())
    } else {
        Ok(())
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
