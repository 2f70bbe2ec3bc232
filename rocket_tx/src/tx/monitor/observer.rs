//! Observers: code of the service that runs at every step of a settlement.

use std::sync::Arc;
use std::time::Duration;

use rocket::{Request, Response};

use crate::tx::failure::Error;
use crate::tx::panics::shielded;
use crate::tx::request_id::RequestId;
use crate::tx::verdict::{Action, SettlementReport};

/// One step of a settlement.
#[non_exhaustive]
pub struct Step<'a, 'r> {
    /// The request that is being settled.
    pub request: &'a Request<'r>,
    /// The name of the resource: for a transaction, its database.
    pub resource: &'a str,
    /// What is done to the resource.
    pub action: Action,
    /// How many databases of this request have been committed so far.
    pub committed: usize,
}

/// Observes requests and every step of their settlement.
///
/// The calls run in the request's own task. A slow observer delays the request and keeps its
/// transactions open. A panic is logged and has no other effect.
///
/// ```
/// use rocket_tx::{Observer, Settlement};
/// use rocket_tx::tx::Step;
///
/// struct Narrator;
///
/// impl Observer for Narrator {
///     fn before(&self, step: &Step<'_, '_>) {
///         println!("{:?} {}", step.action, step.resource);
///     }
/// }
///
/// let settlement = Settlement::new().observer(Narrator);
/// ```
pub trait Observer: Send + Sync + 'static {
    /// A transaction has begun. `waited` is the time that this took, in queues and at the database.
    fn began(&self, _request: RequestId, _database: &str, _waited: Duration) {}

    /// A connection for a `Read` was acquired. `waited` is the time that this took.
    fn read_acquired(&self, _request: RequestId, _database: &str, _waited: Duration) {}

    /// A step is about to begin.
    fn before(&self, _step: &Step<'_, '_>) {}

    /// A step has ended, with `result`, after the time `took`.
    fn after(&self, _step: &Step<'_, '_>, _result: Result<(), &Error>, _took: Duration) {}

    /// The request is settled, and the response is about to leave. Called for every request that
    /// had something outstanding, tried to begin something, was doomed, or added a hook.
    fn settled(&self, _request: &Request<'_>, _settled: &SettlementReport) {}

    /// The response is about to leave. Called for every request, transactional or not. The
    /// status and the headers are those that the client receives. Other response fairings run
    /// before settlement, so they may see another status.
    fn responded(&self, _request: &Request<'_>, _response: &Response<'_>) {}
}

/// All observers of a service. A panic in one does not affect the request or the other observers.
#[derive(Clone)]
pub(in crate::tx) struct Observers(Arc<[Arc<dyn Observer>]>);

impl Observers {
    pub(in crate::tx) fn new(all: &[Arc<dyn Observer>]) -> Self {
        Self(all.into())
    }

    pub(in crate::tx) fn notify(&self, notify: impl Fn(&dyn Observer)) {
        for observer in self.0.iter() {
            shielded("an observer", || notify(&**observer));
        }
    }
}
