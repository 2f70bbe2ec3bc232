//! `/aggregates/todos`: event-sourced todos, which any number of processes can change.
//!
//! To change an aggregate, a handler loads it with its lease, changes it, and stages its events
//! with `commit`. No other request, in any process, can change the aggregate until this request is
//! settled. If the response is a failure, nothing is stored.

mod todo;
mod todo_list;
mod version;

use std::collections::BTreeSet;

use rocket::response::status::Created;
use rocket::serde::json::Json;
use rocket::{get, post};
use rocket_tx::{Problem, Read};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates, EventRecord};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::audit::AuditLog;
use crate::databases::Main;
use crate::http::{
    BadBody, Body, Endpoints, Error, Fails, Id, Page, Rules, ShortText, SingleLineText, check_text,
    endpoints,
};

use self::version::{IfMatch, TodoView, Versioned};

pub(crate) use self::todo::Todo;
pub(crate) use self::todo_list::TodoList;

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("aggregates": list, create, find, rename, complete, complete_all, events)
}

type Todos = Aggregates<Main, Todo>;

/// Lists the aggregates, one page at a time, sorted by id.
///
/// For the next page, set `?after=` to the last `id` of this one.
#[utoipa::path(
    params(Page<String>),
    responses((status = 200, description = "Sorted by id.", body = Vec<todo_list::Row>), Fails<503>)
)]
#[get("/aggregates/todos")]
async fn list(
    page: Result<Page<String>, Problem>,
    mut read: Read<Main>,
) -> Result<Json<Vec<todo_list::Row>>, Error> {
    Ok(Json(todo_list::page(&mut read, page?).await?))
}

/// Creates an aggregate.
#[utoipa::path(
    request_body = NewTodo,
    responses((status = 201, description = "Created.", body = TodoView), BadBody, Fails<409>, Fails<503>)
)]
#[post("/aggregates/todos", data = "<new>")]
async fn create(
    new: Body<NewTodo>,
    todos: Todos,
    audit: AuditLog,
) -> Result<Created<Versioned>, Error> {
    let new = new?.0;
    let id = new.id.unwrap_or_else(|| Uuid::now_v7().to_string());
    // This check only gives a better error message. If two requests create the same id at the same
    // time, the key of the event stream lets one of them fail.
    if todos.peek(&id).await?.is_some() {
        let detail = format!("the todo `{id}` already exists");
        return Err(Error::conflict("exists", detail));
    }
    let mut todo = Todo::create(&id, new.user_id, new.task)?;
    todos.commit(&mut todo).await?;
    audit.record("aggregate created", &id).await?;
    Ok(Created::new(address(&id)).body(Versioned(todo)))
}

/// Returns one aggregate.
#[utoipa::path(
    params(("id" = Id, Path)),
    responses((status = 200, description = "The aggregate.", body = TodoView), Fails<404>, Fails<503>)
)]
#[get("/aggregates/todos/<id>")]
async fn find(id: &str, todos: Todos) -> Result<Versioned, Error> {
    let todo = todos.peek(id).await?;
    Ok(Versioned(todo.ok_or_else(|| no_such(id))?))
}

/// Changes the task of an aggregate.
#[utoipa::path(
    params(("id" = Id, Path), IfMatch),
    request_body = NewTask,
    responses(
        (status = 200, description = "Renamed.", body = TodoView),
        BadBody, Fails<404>, Fails<409>, Fails<412>, Fails<503>
    )
)]
#[post("/aggregates/todos/<id>/rename", data = "<new>")]
async fn rename(
    id: &str,
    new: Body<NewTask>,
    if_match: IfMatch<'_>,
    todos: Todos,
    audit: AuditLog,
) -> Result<Versioned, Error> {
    let new = new?.0;
    let mut todo = todos.get(id).await?.ok_or_else(|| no_such(id))?;
    if_match.check(&todo)?;
    todo.rename(new.task)?;
    todos.commit(&mut todo).await?;
    audit.record("aggregate renamed", id).await?;
    Ok(Versioned(todo))
}

/// Completes an aggregate.
///
/// If it is complete already, nothing changes, and the response is a success too.
#[utoipa::path(
    params(("id" = Id, Path), IfMatch),
    responses(
        (status = 200, description = "The aggregate is complete.", body = TodoView),
        Fails<404>, Fails<409>, Fails<412>, Fails<503>
    )
)]
#[post("/aggregates/todos/<id>/complete")]
async fn complete(
    id: &str,
    if_match: IfMatch<'_>,
    todos: Todos,
    audit: AuditLog,
) -> Result<Versioned, Error> {
    let mut todo = todos.get(id).await?.ok_or_else(|| no_such(id))?;
    if_match.check(&todo)?;
    if todo.complete()? {
        todos.commit(&mut todo).await?;
        audit.record("aggregate completed", id).await?;
    }
    Ok(Versioned(todo))
}

/// Completes several aggregates: all of them or none.
#[utoipa::path(
    request_body = CompleteMany,
    responses(
        (status = 200, description = "In the order of `ids`.", body = Vec<TodoView>),
        BadBody, Fails<404>, Fails<409>, Fails<503>
    )
)]
#[post("/aggregates/todos/complete", data = "<many>")]
async fn complete_all(
    many: Body<CompleteMany>,
    todos: Todos,
    audit: AuditLog,
) -> Result<Json<Vec<Versioned>>, Error> {
    let many = many?.0;
    let ids: Vec<&str> = many.ids.iter().map(String::as_str).collect();
    let found = todos.get_all(&ids).await?.into_iter().zip(&ids);
    let found = found.map(|(todo, id)| todo.ok_or_else(|| no_such(id)));
    let mut all = found.collect::<Result<Vec<Todo>, Error>>()?;
    let mut changed = Vec::new();
    for todo in &mut all {
        if todo.complete()? {
            changed.push(todo);
        }
    }
    todos.commit_all(&mut changed).await?;
    let completed: Vec<&str> = changed.iter().map(|todo| todo.id()).collect();
    audit.record_all("aggregate completed", &completed).await?;
    Ok(Json(all.into_iter().map(Versioned).collect()))
}

/// Lists the events of an aggregate, one page at a time, in the order in which they happened.
///
/// For the next page, set `?after=` to the last `sequence` of this one.
#[utoipa::path(
    params(("id" = Id, Path), Page<u64>),
    responses((status = 200, description = "Sorted by `sequence`.", body = Vec<EventRecord>), Fails<404>, Fails<503>)
)]
#[get("/aggregates/todos/<id>/events")]
async fn events(
    id: &str,
    page: Result<Page<u64>, Problem>,
    todos: Todos,
) -> Result<Json<Vec<EventRecord>>, Error> {
    let page = page?;
    let after = page.after.unwrap_or(0);
    let events = todos.events(id, after, page.limit).await?;
    if events.is_empty() && after == 0 {
        return Err(no_such(id));
    }
    Ok(Json(events))
}

/// Returns the URL path of a todo. Brackets are encoded here: Rocket does not encode them, and
/// RFC 3986 does not allow them in a path.
fn address(id: &str) -> String {
    let address = rocket::uri!(find(id)).to_string();
    address.replace('[', "%5B").replace(']', "%5D")
}

fn no_such(id: &str) -> Error {
    Error::not_found("no-such-todo", format!("there is no todo `{id}`"))
}

impl From<aggregate::AggregateError> for Error {
    fn from(error: aggregate::AggregateError) -> Self {
        Self::Transaction(error.into())
    }
}

/// The body that creates a todo.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewAggregate)]
struct NewTodo {
    /// If it is left out, the service chooses one.
    #[schema(value_type = Option<Id>)]
    id: Option<String>,
    #[schema(value_type = ShortText)]
    user_id: String,
    #[schema(value_type = SingleLineText)]
    task: String,
}

/// The body that renames a todo.
#[derive(Debug, Deserialize, ToSchema)]
struct NewTask {
    #[schema(value_type = SingleLineText)]
    task: String,
}

/// The body that completes several todos.
#[derive(Debug, Deserialize, ToSchema)]
struct CompleteMany {
    #[schema(value_type = BTreeSet<Id>, min_items = 1, max_items = 100)]
    ids: Vec<String>,
}

impl Rules for NewTodo {
    fn check(&self) -> Result<(), String> {
        if let Some(id) = &self.id {
            Todo::stream(id).map_err(|error| format!("`id`: {error}"))?;
            if [".", ".."].contains(&id.as_str()) {
                return Err(format!(
                    "`id` must not be `{id}`: clients remove it from paths"
                ));
            }
        }
        check_text("user_id", &self.user_id, 200)?;
        check_text("task", &self.task, 500)
    }
}

impl Rules for NewTask {
    fn check(&self) -> Result<(), String> {
        check_text("task", &self.task, 500)
    }
}

impl Rules for CompleteMany {
    fn check(&self) -> Result<(), String> {
        let distinct: BTreeSet<_> = self.ids.iter().collect();
        match self.ids.len() {
            1..=100 if distinct.len() == self.ids.len() => Ok(()),
            1..=100 => Err("`ids` must not contain duplicates".into()),
            _ => Err("`ids` must contain 1 to 100 ids".into()),
        }
    }
}
