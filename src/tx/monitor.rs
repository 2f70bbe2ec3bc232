//! Who is told of what happens to requests.

use super::live::Live;
use super::observe::{Observer, Observers};

/// Managed by `Settlement`.
#[derive(Clone)]
pub(super) struct Monitor {
    pub(super) live: Live,
    pub(super) observers: Observers,
}

impl Monitor {
    pub(super) fn observe(&self, tell: impl Fn(&dyn Observer)) {
        self.observers.tell(tell);
    }
}
