//! The trait [`Aggregate`], and the macro that implements it.

use rocket::serde::json::serde_json;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entity::{Entity, check_id};
use super::error::AggregateError;
use super::event::{EventRecord, ListedEvent, Metadata, ReplayError};
use super::stream::{History, Snapshot};

/// A state that is computed from events. [Recording](Self::record) a new event changes it.
///
/// An aggregate is a plain struct with an [`Entity`] field; [`aggregate!`](crate::aggregate!)
/// implements the trait for it. Snapshots are written and read with serde. `Default` is the state
/// before the first event.
pub trait Aggregate:
    Clone + Default + Serialize + DeserializeOwned + Send + Sync + Sized + 'static
{
    /// The first part of the stream names: `{TYPE}:{id}`. It must never change.
    const TYPE: &'static str;

    /// The version of the snapshots. Raise it when the meaning of the state changes; snapshots of
    /// other versions are then ignored.
    const SNAPSHOT_VERSION: u32 = 1;

    /// Returns the [`Entity`]: the id, version and new events.
    fn entity(&self) -> &Entity;

    /// Returns the [`Entity`], in order to change it.
    fn entity_mut(&mut self) -> &mut Entity;

    /// Applies a stored event.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if the kind or the version of the event is unknown, or the payload does not
    /// match its kind.
    fn replay(&mut self, event: &EventRecord) -> Result<(), ReplayError>;

    /// Returns an aggregate without events.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Id`] unless the id has 1 to 200 bytes and no control characters.
    fn fresh(id: &str) -> Result<Self, AggregateError> {
        let mut aggregate = Self::default();
        *aggregate.entity_mut() = Entity::new(id)?;
        Ok(aggregate)
    }

    /// Applies a new event, and keeps it for the next commit. An event that is never committed is not
    /// stored.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Encode`] if the event cannot be written as JSON. The state is then
    /// unchanged.
    fn record<E: ListedEvent<Self>>(&mut self, event: E) -> Result<(), AggregateError> {
        let payload = serde_json::to_value(&event).map_err(|error| AggregateError::Encode {
            what: E::NAME,
            reason: error.to_string(),
        })?;
        let sequence = self.entity().version() + 1;
        event.apply(self);
        self.entity_mut().push(EventRecord {
            sequence,
            name: E::NAME.to_owned(),
            version: E::VERSION,
            payload,
            recorded_at: None,
            metadata: Metadata::new(),
        });
        Ok(())
    }

    /// Returns the id, without the type.
    fn id(&self) -> &str {
        self.entity().id()
    }

    /// Returns the number of events, including new ones.
    fn version(&self) -> u64 {
        self.entity().version()
    }

    /// Returns the name of the stream of `id`.
    ///
    /// # Errors
    ///
    /// [`AggregateError::Id`].
    fn stream(id: &str) -> Result<String, AggregateError> {
        Ok(format!("{}:{}", Self::TYPE, check_id(id)?))
    }
}

/// Rebuilds an aggregate from `history`. Returns `None` if there is neither a snapshot nor an
/// event.
pub(super) fn replayed<A: Aggregate>(
    stream: &str,
    id: &str,
    history: &History,
) -> Result<Option<A>, AggregateError> {
    let mut aggregate = match &history.snapshot {
        None if history.events.is_empty() => return Ok(None),
        None => A::default(),
        Some(snapshot) => restored(stream, snapshot)?,
    };
    let from = history.snapshot.as_ref().map_or(0, |it| it.sequence);
    *aggregate.entity_mut() = Entity::at(id, from);
    for event in &history.events {
        let corrupt = |reason| AggregateError::Corrupt {
            stream: stream.to_owned(),
            sequence: event.sequence,
            reason,
        };
        let expected = aggregate.version() + 1;
        if event.sequence != expected {
            return Err(corrupt(format!(
                "event {expected} was expected in its place"
            )));
        }
        let result = aggregate.replay(event);
        result.map_err(|ReplayError(reason)| corrupt(reason))?;
        aggregate.entity_mut().replayed(event.sequence);
    }
    Ok(Some(aggregate))
}

fn restored<A: Aggregate>(stream: &str, snapshot: &Snapshot) -> Result<A, AggregateError> {
    serde_json::from_str(&snapshot.state).map_err(|_| AggregateError::Corrupt {
        stream: stream.to_owned(),
        sequence: snapshot.sequence,
        reason: "the snapshot at this event does not match the aggregate".into(),
    })
}

/// Returns a snapshot of the current state.
pub(super) fn snapshot_of<A: Aggregate>(aggregate: &A) -> Result<Snapshot, AggregateError> {
    let state = serde_json::to_string(aggregate).map_err(|error| AggregateError::Encode {
        what: A::TYPE,
        reason: error.to_string(),
    })?;
    Ok(Snapshot {
        sequence: aggregate.version(),
        version: A::SNAPSHOT_VERSION,
        state,
    })
}

/// Implements [`Aggregate`](crate::aggregate::Aggregate) for a struct.
///
/// The arguments are the struct, the first part of its stream names, the field with the
/// [`Entity`](crate::aggregate::Entity), and the kinds of event.
///
/// ```
/// use rocket_tx_aggregates::aggregate::{Aggregate, Entity, Event};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Clone, Default, Serialize, Deserialize)]
/// struct Switch { #[serde(skip)] entity: Entity, on: bool }
///
/// #[derive(Serialize, Deserialize)]
/// struct Flipped;
///
/// impl Event<Switch> for Flipped {
///     const NAME: &'static str = "flipped";
///     fn apply(self, switch: &mut Switch) { switch.on = !switch.on }
/// }
///
/// rocket_tx_aggregates::aggregate!(Switch as "switch", entity, [Flipped]);
///
/// let mut switch = Switch::fresh("kitchen").unwrap();
/// switch.record(Flipped).unwrap();
/// assert!(switch.on);
/// assert_eq!(switch.version(), 1);
/// ```
///
/// `snapshots = 2` as the last argument sets
/// [`SNAPSHOT_VERSION`](crate::aggregate::Aggregate::SNAPSHOT_VERSION).
#[macro_export]
macro_rules! aggregate {
    (
        $aggregate:ty as $kind:literal, $entity:ident, [$($event:ty),+ $(,)?]
        $(, snapshots = $version:literal)? $(,)?
    ) => {
        $(impl $crate::aggregate::ListedEvent<$aggregate> for $event {})+

        impl $crate::aggregate::Aggregate for $aggregate {
            const TYPE: &'static str = $kind;
            $(const SNAPSHOT_VERSION: u32 = $version;)?

            fn entity(&self) -> &$crate::aggregate::Entity {
                &self.$entity
            }

            fn entity_mut(&mut self) -> &mut $crate::aggregate::Entity {
                &mut self.$entity
            }

            fn replay(
                &mut self,
                event: &$crate::aggregate::EventRecord,
            ) -> ::core::result::Result<(), $crate::aggregate::ReplayError> {
                $(
                    if event.name == <$event as $crate::aggregate::Event<$aggregate>>::NAME {
                        return $crate::aggregate::replay_as::<$aggregate, $event>(self, event);
                    }
                )+
                Err($crate::aggregate::ReplayError(
                    format!("the aggregate `{}` has no event `{}`", $kind, event.name),
                ))
            }
        }
    };
}
