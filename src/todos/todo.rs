//! The types of a todo: the bodies that clients send, the row in the database, and the response.

use rocket::http::uri::Host;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;

use crate::http::{Rules, SafeInteger, SingleLineText, check_text, safe_integer};

/// The host in the client's URL. The field `url` of a todo contains it.
pub(super) type ClientHost<'r> = Option<&'r Host<'r>>;

/// A row of the table `todos`.
#[derive(Debug, FromRow)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) title: String,
    pub(super) completed: bool,
    pub(super) order: Option<i64>,
    pub(super) shared: bool,
}

/// A todo, as clients see it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Todo {
    pub(super) id: i64,
    pub(super) title: String,
    pub(super) completed: bool,
    #[schema(required)]
    pub(super) order: Option<i64>,
    pub(super) shared: bool,
    pub(super) url: String,
}

/// The body that creates a todo.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewTodo {
    #[schema(value_type = SingleLineText)]
    pub(super) title: String,
    #[serde(default)]
    pub(super) completed: bool,
    #[serde(default, deserialize_with = "safe_integer")]
    #[schema(value_type = Option<SafeInteger>)]
    pub(super) order: Option<i64>,
}

/// The body that changes a todo. Fields that are left out keep their values.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Change {
    #[schema(value_type = Option<SingleLineText>)]
    pub(super) title: Option<String>,
    pub(super) completed: Option<bool>,
    #[serde(default, deserialize_with = "safe_integer")]
    #[schema(value_type = Option<SafeInteger>)]
    pub(super) order: Option<i64>,
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
    pub(super) fn new(row: Row, host: ClientHost<'_>) -> Self {
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
