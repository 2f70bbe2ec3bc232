//! Being told of every step of a settlement.

use std::sync::Arc;
use std::time::Duration;

use rocket::{Request, Response};

use crate::tx::failure::Error;
use crate::tx::panics::shielded;
use crate::tx::request_id::RequestId;
use crate::tx::verdict::{Action, SettlementReport};

/// One step of a settlement.
pub struct Step<'a, 'r> {
    /// The request that is being settled.
    pub request: &'a Request<'r>,
    /// The name of the resource: for a transaction, its database.
    pub resource: &'a str,
    /// What is done to it.
    pub action: Action,
    /// How many databases of this request have been committed so far.
    pub committed: usize,
}

/// Told before and after each step of each settlement, in the request's own task: what takes long
/// here is waited for, with the transaction open. A panic is logged and changes nothing.
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
    /// A transaction has begun, after so long in queues and at the database.
    fn began(&self, _request: RequestId, _database: &str, _waited: Duration) {}

    /// A connection for reading was lent, after so long in the queue.
    fn read_acquired(&self, _request: RequestId, _database: &str, _waited: Duration) {}

    /// A step is about to be taken.
    fn before(&self, _step: &Step<'_, '_>) {}

    /// A step was taken.
    fn after(&self, _step: &Step<'_, '_>, _result: Result<(), &Error>, _took: Duration) {}

    /// Everything is done; the response is about to leave. Called for requests that had something
    /// outstanding, or tried to.
    fn settled(&self, _request: &Request<'_>, _settled: &SettlementReport) {}

    /// The response is about to leave, of whatever request: status and headers are those that the
    /// client is told. Response fairings run before settlement, and may see another status.
    fn responded(&self, _request: &Request<'_>, _response: &Response<'_>) {}
}

/// All observers of a service. A panic in one harms nobody.
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
