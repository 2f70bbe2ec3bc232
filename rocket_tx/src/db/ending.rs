//! Ending a transaction from outside, while its session is in somebody else's hands.

use std::sync::Arc;

use rocket::futures::future::BoxFuture;

/// Ends one transaction from outside its session: a guard that outlives its request has it, or a
/// statement that nobody waits for is under way on it.
///
/// SQLite's writer obeys no COMMIT but that of a settlement, unless its hooks were replaced. On
/// Postgres the session is ended: its holder could roll back and go on.
#[derive(Clone, Default)]
pub struct Ending(Option<Arc<dyn End>>);

/// What was found when a transaction was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It stood until then: nothing of it stays.
    RolledBack,
    /// Its user had sent COMMIT or ROLLBACK, or may have: something may stay.
    Before,
    /// The server could not be asked.
    Unasked,
}

pub(super) trait End: Send + Sync {
    fn end(&self) -> BoxFuture<'_, Ended>;
}

impl Ending {
    /// Nothing can commit it: closing its session is enough.
    pub fn by_closing() -> Self {
        Self(None)
    }

    pub(super) fn by(end: impl End + 'static) -> Self {
        Self(Some(Arc::new(end)))
    }

    /// Ends the transaction. After [`Ended::RolledBack`] and [`Ended::Before`] its session is gone:
    /// each later statement on it fails.
    ///
    /// Dropping the future leaves open whether it was ended.
    pub async fn end(&self) -> Ended {
        match &self.0 {
            Some(end) => end.end().await,
            None => Ended::RolledBack,
        }
    }
}
