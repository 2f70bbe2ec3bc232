//! The requests with a key that this process is serving.
//!
//! A request waits here for an earlier one with the same key, so that it holds no connection while
//! it waits. Requests of other processes are found by the claim in the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::timeout;

use crate::hash::Scope;

/// The scopes of the requests in flight.
#[derive(Default)]
pub(crate) struct InFlight(Mutex<HashMap<Scope, Arc<AsyncMutex<()>>>>);

/// The right to serve a request with a key. Dropping it lets the next request with the same key
/// continue.
pub(crate) struct Permit {
    in_flight: Arc<InFlight>,
    scope: Scope,
    turn: Option<Arc<AsyncMutex<()>>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl InFlight {
    /// Waits until no other request with this scope is in flight, for at most `longest`. Returns
    /// `None` if one still is.
    pub(crate) async fn enter(self: &Arc<Self>, scope: Scope, longest: Duration) -> Option<Permit> {
        let turn = Arc::clone(self.0.lock().entry(scope).or_default());
        // Created before the wait: dropping it removes the entry if nothing else needs it.
        let mut permit = Permit {
            in_flight: Arc::clone(self),
            scope,
            turn: Some(Arc::clone(&turn)),
            held: None,
        };
        let held = timeout(longest, turn.lock_owned()).await;
        permit.held = Some(held.ok()?);
        Some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.held = None;
        self.turn = None;
        let mut scopes = self.in_flight.0.lock();
        let turn = scopes.get(&self.scope);
        // Clones are made under this lock, so the count cannot rise meanwhile.
        if turn.is_some_and(|turn| Arc::strong_count(turn) == 1) {
            scopes.remove(&self.scope);
        }
    }
}
