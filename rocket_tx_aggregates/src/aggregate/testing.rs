//! Testing aggregates. With the feature `testing`.

use rocket::serde::json::Value;

use super::definition::{Aggregate, replayed as rebuilt};
use super::event::{EventRecord, Metadata};
use super::stream::History;

/// Returns the aggregate that is computed from stored events, each with its name, its version and
/// its payload. The test of an upcaster is a line: write the event as the old program stored it.
///
/// The id of the aggregate is `test`.
///
/// ```
/// use rocket::serde::json::{Value, json};
/// use rocket_tx_aggregates::aggregate::{Entity, Event};
/// use rocket_tx_aggregates::testing;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Clone, Default, Serialize, Deserialize)]
/// struct Todo { #[serde(skip)] entity: Entity, task: String }
///
/// #[derive(Serialize, Deserialize)]
/// struct Renamed { task: String }
///
/// impl Event<Todo> for Renamed {
///     const NAME: &'static str = "renamed";
///     const VERSION: u32 = 2;
///
///     fn apply(self, todo: &mut Todo) { todo.task = self.task }
///
///     fn upcast(_: u32, mut payload: Value) -> Result<Value, String> {
///         Ok(json!({ "task": payload["title"].take() }))
///     }
/// }
///
/// rocket_tx_aggregates::aggregate!(Todo as "todo", entity, [Renamed]);
///
/// let todo: Todo = testing::replayed([("renamed", 1, json!({ "title": "milk" }))]);
/// assert_eq!(todo.task, "milk");
/// ```
///
/// # Panics
///
/// If an event cannot be replayed, with the reason; and without events.
pub fn replayed<A: Aggregate>(events: impl IntoIterator<Item = (&'static str, u32, Value)>) -> A {
    const ID: &str = "test";

    let record = |(sequence, (name, version, payload)): (u64, (&str, u32, Value))| EventRecord {
        sequence,
        name: name.to_owned(),
        version,
        payload,
        recorded_at: None,
        metadata: Metadata::new(),
    };
    let history = History {
        snapshot: None,
        events: (1..).zip(events).map(record).collect(),
    };
    let stream = format!("{}:{ID}", A::TYPE);
    match rebuilt(&stream, ID, &history) {
        Ok(aggregate) => aggregate.expect("at least one event is given"),
        Err(error) => panic!("{error}"),
    }
}
