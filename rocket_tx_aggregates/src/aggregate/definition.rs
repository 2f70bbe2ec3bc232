//! The trait of aggregates, and the macro that implements it.

use rocket::serde::json::serde_json;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entity::{Entity, check_id};
use super::error::Error;
use super::event::{Event, EventRecord, Metadata, ReplayError};
use super::stream::{History, Snapshot};

/// A state that follows from events, and is changed by [recording](Self::record) new ones.
///
/// A plain struct with an [`Entity`] in it; [`aggregate!`](crate::aggregate!) implements the
/// trait. serde is for snapshots, `Default` is the state to which nothing has happened.
pub trait Aggregate:
    Clone + Default + Serialize + DeserializeOwned + Send + Sync + Sized + 'static
{
    /// The first part of its streams' names: `{TYPE}:{id}`. Never changes.
    const TYPE: &'static str;

    /// Raise it when the meaning of the state changes: older snapshots are passed over then.
    const SNAPSHOT_VERSION: u32 = 1;

    /// Its id, version and new events.
    fn entity(&self) -> &Entity;

    /// Its id, version and new events.
    fn entity_mut(&mut self) -> &mut Entity;

    /// Applies a stored event.
    ///
    /// # Errors
    ///
    /// An event of an unknown kind or version, or whose payload is not what its kind says.
    fn replay(&mut self, event: &EventRecord) -> Result<(), ReplayError>;

    /// An aggregate to which nothing has happened yet.
    ///
    /// # Errors
    ///
    /// [`Error::Id`]: an id has 1 to 200 bytes and no control characters.
    fn fresh(id: &str) -> Result<Self, Error> {
        let mut aggregate = Self::default();
        *aggregate.entity_mut() = Entity::new(id)?;
        Ok(aggregate)
    }

    /// Applies an event, and keeps it for the next commit.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] for an event that cannot be written as JSON; the state is as before.
    fn record<E: Event<Self>>(&mut self, event: E) -> Result<(), Error> {
        let payload = serde_json::to_value(&event).map_err(|error| Error::Encode {
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

    /// Its id, without the type.
    fn id(&self) -> &str {
        self.entity().id()
    }

    /// How many events have happened to it, the new ones included.
    fn version(&self) -> u64 {
        self.entity().version()
    }

    /// The name of the stream of `id`.
    ///
    /// # Errors
    ///
    /// [`Error::Id`].
    fn stream(id: &str) -> Result<String, Error> {
        Ok(format!("{}:{}", Self::TYPE, check_id(id)?))
    }
}

/// The state that follows from `history`; `None` from no events at all.
pub(super) fn replayed<A: Aggregate>(
    stream: &str,
    id: &str,
    history: &History,
) -> Result<Option<A>, Error> {
    let mut aggregate = match &history.snapshot {
        None if history.events.is_empty() => return Ok(None),
        None => A::default(),
        Some(snapshot) => restored(stream, snapshot)?,
    };
    let from = history.snapshot.as_ref().map_or(0, |it| it.sequence);
    *aggregate.entity_mut() = Entity::at(id, from);
    for event in &history.events {
        let corrupt = |reason| Error::Corrupt {
            stream: stream.to_owned(),
            sequence: event.sequence,
            reason,
        };
        if event.sequence != aggregate.version() + 1 {
            let last = aggregate.version();
            return Err(corrupt(format!("the one before it is event {last}")));
        }
        let result = aggregate.replay(event);
        result.map_err(|ReplayError(reason)| corrupt(reason))?;
        aggregate.entity_mut().replayed(event.sequence);
    }
    Ok(Some(aggregate))
}

fn restored<A: Aggregate>(stream: &str, snapshot: &Snapshot) -> Result<A, Error> {
    serde_json::from_str(&snapshot.state).map_err(|_| Error::Corrupt {
        stream: stream.to_owned(),
        sequence: snapshot.sequence,
        reason: "its snapshot is not that of the aggregate".into(),
    })
}

/// The state for a snapshot.
pub(super) fn snapshot_of<A: Aggregate>(aggregate: &A) -> Result<Snapshot, Error> {
    let state = serde_json::to_string(aggregate).map_err(|error| Error::Encode {
        what: A::TYPE,
        reason: error.to_string(),
    })?;
    Ok(Snapshot {
        sequence: aggregate.version(),
        version: A::SNAPSHOT_VERSION,
        state,
    })
}

/// Implements [`Aggregate`](crate::aggregate::Aggregate): the type, what its streams are called,
/// the field that is its entity, and its kinds of event.
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
/// `snapshots = 2` at the end sets the version of its snapshots.
#[macro_export]
macro_rules! aggregate {
    (
        $aggregate:ty as $kind:literal, $entity:ident, [$($event:ty),+ $(,)?]
        $(, snapshots = $version:literal)? $(,)?
    ) => {
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
                    format!("there is no event `{}` in `{}`", event.name, $kind),
                ))
            }
        }
    };
}
