//! Events: a kind of event with its older versions, and an event as it is stored.

use std::collections::BTreeMap;

use rocket::serde::json::{Value, serde_json};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Facts about an event that are not part of its payload. In events recorded by a request,
/// `request_id` is the id of that request.
pub type Metadata = BTreeMap<String, String>;

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct EventRecord {
    /// The position in the stream, counted from 1 without gaps.
    pub sequence: u64,
    /// The kind of event.
    pub name: String,
    /// The version of that kind.
    pub version: u32,
    /// The content, as JSON.
    pub payload: Value,
    /// The time of storage by the store's clock, in milliseconds since 1970. `None` before storage.
    #[cfg_attr(feature = "utoipa", schema(required))]
    pub recorded_at: Option<i64>,
    /// Facts about the event that are not part of its payload.
    #[cfg_attr(feature = "utoipa", schema(value_type = BTreeMap<String, String>))]
    pub metadata: Metadata,
}

/// One kind of event of the aggregate `A`.
///
/// Stored events never change. When the shape of the payload changes, raise
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
    /// The name in the store. It must never change.
    const NAME: &'static str;

    /// The version that [`Serialize`] writes and [`DeserializeOwned`] reads.
    const VERSION: u32 = 1;

    /// Converts a payload of `version` to the next version. Called once for each version step.
    ///
    /// # Errors
    ///
    /// A description of the defect for an operator. It must not contain parts of the payload.
    fn upcast(version: u32, payload: Value) -> Result<Value, String> {
        let _ = payload;
        Err(format!("there is no upcaster from version {version}"))
    }

    /// Changes the state to the one after this event. It must not fail, because the event has
    /// already happened.
    fn apply(self, aggregate: &mut A);
}

/// An event in the list of [`aggregate!`](crate::aggregate!), which implements this trait. Any other
/// event could be stored, but not loaded again.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not in the list of events of `{A}`",
    label = "this event could not be loaded again",
    note = "add `{Self}` to the list in `aggregate!({A} as .., .., [..])`"
)]
pub trait ListedEvent<A>: Event<A> {}

/// The reason why an event cannot be replayed, for an operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReplayError(pub String);

/// Replays an event of the kind `E`. Called by the code that [`aggregate!`](crate::aggregate!)
/// generates.
#[doc(hidden)]
pub fn replay_as<A, E: Event<A>>(
    aggregate: &mut A,
    record: &EventRecord,
) -> Result<(), ReplayError> {
    if record.version > E::VERSION {
        return Err(ReplayError(format!(
            "`{}` has version {}, but this program supports only versions up to {}; run a newer release",
            E::NAME,
            record.version,
            E::VERSION
        )));
    }
    let mut payload = record.payload.clone();
    for version in record.version..E::VERSION {
        payload = E::upcast(version, payload).map_err(ReplayError)?;
    }
    // serde's message may quote a value of the payload, so it is left out.
    let event: E = serde_json::from_value(payload).map_err(|_| {
        ReplayError(format!(
            "the payload does not match `{}` version {}",
            E::NAME,
            E::VERSION
        ))
    })?;
    event.apply(aggregate);
    Ok(())
}
