//! The door by which anything can join a request's settlement.

use std::any::Any;
use std::borrow::Cow;

use tokio::time::Instant;

use crate::db::Durability;
use crate::tx::failure::Error;
use crate::tx::request_id::RequestId;

/// When a resource is committed. Prepare goes the other way round: what releases write is proved by
/// the databases after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Commits may fail: databases.
    Database,
    /// Commits come after all databases and cannot undo them: leases, files, mails.
    Release,
}

/// Anything that is settled together with a request's transactions.
///
/// The order of a settlement: `prepare` of all, releases first, because they may write, and each
/// phase in joining order; then `commit` of the databases; then the wait until all of them are
/// durable; then `commit` of the releases. If any prepare fails, or the verdict is rollback,
/// `rollback` of all, databases first: each is tried, whatever the others did.
///
/// All of it runs in the request's task, within `settle_timeout`, under `catch_unwind`. Prepare and
/// the first commit have to leave a quarter of it, a second at most, for what follows; rollbacks and
/// releases share what is left. A future that takes longer is dropped, and the resource after it. A resource that is dropped unsettled
/// (the process ends) gets no call: keep what must survive that in a database.
///
/// ```
/// use std::borrow::Cow;
/// use rocket_tx::{Error, Resource};
///
/// struct Mail { to: String, text: String }
///
/// #[rocket::async_trait]
/// impl Resource for Mail {
///     fn name(&self) -> Cow<'_, str> { "mail".into() }
///
///     async fn commit(&mut self) -> Result<(), Error> {
///         println!("to {}: {}", self.to, self.text);
///         Ok(())
///     }
/// }
///
/// #[rocket::post("/welcome")]
/// fn welcome(outstanding: &rocket_tx::Outstanding) -> Result<(), Error> {
///     outstanding.join(Mail { to: "you".into(), text: "hello".into() })
/// }
/// ```
#[rocket::async_trait]
pub trait Resource: Any + Send {
    /// What logs, `/registry` and observers call it.
    fn name(&self) -> Cow<'_, str>;

    /// When it is committed.
    fn phase(&self) -> Phase {
        Phase::Release
    }

    /// The last chance to refuse. Work that must be in the request's transaction, an outbox row or
    /// the release of a lease, is done here, on what [`SettleContext::transaction`] lends.
    ///
    /// # Errors
    ///
    /// Everything is rolled back, and the client is answered with the error.
    async fn prepare(&mut self, _context: &mut SettleContext<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Makes it so.
    ///
    /// # Errors
    ///
    /// In the database phase: [`Error::Unknown`] if it may have been committed all the same, any
    /// other if it was not. In the release phase errors are logged and change nothing.
    async fn commit(&mut self) -> Result<(), Error>;

    /// The wait until what was committed survives a power cut. Asked for once, after a `commit`
    /// that succeeded; the resource is dropped before the wait begins. The waits of all databases
    /// run side by side; one that fails, or lasts longer than `settle_timeout`, makes the outcome
    /// `unknown`. Only databases are asked.
    fn durability(&mut self) -> Durability {
        Durability::reached()
    }

    /// Undoes what was done before, as far as it was done. If that takes a statement, it is run in
    /// what [`SettleContext::begin_after_rollback`] begins.
    ///
    /// # Errors
    ///
    /// They are logged; the other resources are rolled back all the same.
    async fn rollback(&mut self, _context: &mut SettleContext<'_>) -> Result<(), Error> {
        Ok(())
    }
}

/// What a resource is open while the request is settled: views of the request's transactions, which
/// settlement alone ends.
pub struct SettleContext<'a> {
    pub(in crate::tx) request: RequestId,
    pub(in crate::tx) deadline: Instant,
    /// All resources but the one that is being called.
    pub(in crate::tx) others: &'a mut [Option<Box<dyn Resource>>],
    /// The index of the database that is to be committed last.
    pub(in crate::tx) last: &'a mut Option<usize>,
}

impl SettleContext<'_> {
    /// The request that is being settled.
    pub fn request_id(&self) -> RequestId {
        self.request
    }

    /// When the step that is being taken must be over; its future is dropped then.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}
