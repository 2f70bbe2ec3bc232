//! One thing that happened, and its older versions.

use std::collections::BTreeMap;

use rocket::serde::json::{Value, serde_json};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Facts about an event that are not part of it. `request_id` is the request that caused it.
pub type Metadata = BTreeMap<String, String>;

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct EventRecord {
    /// Its place in the stream, from 1, without gaps.
    pub sequence: u64,
    /// Its kind.
    pub name: String,
    /// Which version of that kind.
    pub version: u32,
    /// Its content.
    pub payload: Value,
    /// When it was stored, on the store's clock: milliseconds since 1970. `None` until then.
    #[cfg_attr(feature = "utoipa", schema(required))]
    pub recorded_at: Option<i64>,
    /// Facts about it that are not part of it.
    #[cfg_attr(feature = "utoipa", schema(value_type = BTreeMap<String, String>))]
    pub metadata: Metadata,
}

/// One kind of event of the aggregate `A`.
///
/// Stored events stay as they are for ever. When the shape changes, raise
/// [`VERSION`](Self::VERSION) and convert older payloads in [`upcast`](Self::upcast).
///
/// ```
/// use rocket_tx_aggregates::aggregate::{Entity, Event};
/// use rocket::serde::json::{Value, json};
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
///     fn upcast(version: u32, mut payload: Value) -> Result<Value, String> {
///         match version {
///             1 => Ok(json!({ "task": payload["title"].take() })),
///             _ => Err(format!("version {version} was never written")),
///         }
///     }
/// }
///
/// rocket_tx_aggregates::aggregate!(Todo as "todo", entity, [Renamed]);
/// ```
pub trait Event<A>: Serialize + DeserializeOwned {
    /// Its name in the store. Never changes.
    const NAME: &'static str;

    /// Which version [`Serialize`] writes and [`DeserializeOwned`] reads.
    const VERSION: u32 = 1;

    /// Makes of a payload of `version` one of the next version. Called once for each step.
    ///
    /// # Errors
    ///
    /// The defect, in words for an operator; without the content.
    fn upcast(version: u32, payload: Value) -> Result<Value, String> {
        let _ = payload;
        Err(format!("there is no upcaster from version {version}"))
    }

    /// Changes the state to what it is after this event. Must not refuse: it has happened.
    fn apply(self, aggregate: &mut A);
}

/// Why an event cannot be replayed, in words for an operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReplayError(pub String);

/// Called by [`aggregate!`](crate::aggregate!) for an event whose name it knows.
#[doc(hidden)]
pub fn replay_as<A, E: Event<A>>(
    aggregate: &mut A,
    record: &EventRecord,
) -> Result<(), ReplayError> {
    if record.version > E::VERSION {
        return Err(ReplayError(format!(
            "`{}` is of version {}, and this program knows versions up to {}",
            E::NAME,
            record.version,
            E::VERSION
        )));
    }
    let mut payload = record.payload.clone();
    for version in record.version..E::VERSION {
        payload = E::upcast(version, payload).map_err(ReplayError)?;
    }
    // serde's words may repeat a value of the payload; its category does not.
    let event: E = serde_json::from_value(payload).map_err(|_| {
        ReplayError(format!(
            "the payload is not that of `{}` version {}",
            E::NAME,
            E::VERSION
        ))
    })?;
    event.apply(aggregate);
    Ok(())
}
