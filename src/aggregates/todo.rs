//! An event-sourced todo: its events, and the state that they produce.

use rocket::serde::json::{Value, json};
use rocket_tx_aggregates::aggregate;
use rocket_tx_aggregates::aggregate::{Aggregate, AggregateError, Entity, Event};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of an event-sourced todo.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = AggregateState)]
pub(crate) struct Todo {
    #[serde(skip)]
    entity: Entity,
    pub(super) user_id: String,
    pub(super) task: String,
    pub(super) completed: bool,
}

aggregate!(Todo as "todo", entity, [Created, Renamed, Completed]);

impl Todo {
    pub(super) fn create(id: &str, user_id: String, task: String) -> Result<Self, AggregateError> {
        let mut todo = Self::fresh(id)?;
        todo.record(Created { user_id, task })?;
        Ok(todo)
    }

    pub(super) fn rename(&mut self, task: String) -> Result<(), AggregateError> {
        self.record(Renamed { task })
    }

    /// Returns `false` if the todo was complete already; then no event is recorded.
    pub(super) fn complete(&mut self) -> Result<bool, AggregateError> {
        if self.completed {
            return Ok(false);
        }
        self.record(Completed {})?;
        Ok(true)
    }
}

#[derive(Serialize, Deserialize)]
struct Created {
    user_id: String,
    task: String,
}

impl Event<Todo> for Created {
    const NAME: &'static str = "created";

    fn apply(self, todo: &mut Todo) {
        todo.user_id = self.user_id;
        todo.task = self.task;
    }
}

#[derive(Serialize, Deserialize)]
struct Renamed {
    task: String,
}

impl Event<Todo> for Renamed {
    const NAME: &'static str = "renamed";
    /// In version 1 the field `task` was called `title`.
    const VERSION: u32 = 2;

    fn apply(self, todo: &mut Todo) {
        todo.task = self.task;
    }

    fn upcast(version: u32, mut payload: Value) -> Result<Value, String> {
        match (version, payload.get_mut("title").map(Value::take)) {
            (1, Some(task)) => Ok(json!({ "task": task })),
            (1, None) => Err("`renamed` version 1 has no `title`".into()),
            _ => Err(format!("`renamed` has no version {version}")),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Completed {}

impl Event<Todo> for Completed {
    const NAME: &'static str = "completed";

    fn apply(self, todo: &mut Todo) {
        todo.completed = true;
    }
}
