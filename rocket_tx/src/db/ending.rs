//! Ends a transaction from outside its session.

use std::sync::Arc;

use rocket::futures::future::BoxFuture;

/// Ends one transaction from outside its session.
///
/// Used when a guard that outlives its request still holds the session, or when an abandoned
/// statement may still run on the session.
///
/// On SQLite nothing needs to be done: the commit hook refuses every COMMIT that settlement did not
/// send, unless a handler has replaced the hook. On Postgres the server process of the session is
/// terminated. Otherwise the holder of the session could roll back, begin another transaction, and
/// write in it.
#[derive(Clone, Default)]
pub struct Ending(Option<Arc<dyn End>>);

/// The result of ending a transaction from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The transaction was still open, and nothing of it is committed.
    RolledBack,
    /// The transaction may have ended before, for example because its handler had sent COMMIT. Some
    /// of its changes may be committed.
    Before,
    /// The server did not confirm that the session has ended. Until now the handler cannot have
    /// committed any changes.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Unasked,
}

pub(super) trait End: Send + Sync {
    fn end(&self) -> BoxFuture<'_, Ended>;
}

impl Ending {
    /// Creates the `Ending` of a transaction that cannot commit. [`end`](Self::end) then does
    /// nothing, because it is enough to close the session later.
    pub fn by_closing() -> Self {
        Self(None)
    }

    pub(super) fn by(end: impl End + 'static) -> Self {
        Self(Some(Arc::new(end)))
    }

    /// Ends the transaction.
    ///
    /// On Postgres [`Ended::RolledBack`] also means that the session is gone: every later statement
    /// on it fails. On SQLite the session remains until it is closed.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, it is unknown whether the transaction was ended.
    pub async fn end(&self) -> Ended {
        match &self.0 {
            Some(end) => end.end().await,
            None => Ended::RolledBack,
        }
    }
}
