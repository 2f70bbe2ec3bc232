//! The trait of everything that can join a request's settlement.

use std::any::Any;
use std::borrow::Cow;

use tokio::time::Instant;

use super::database::DatabaseTransaction;
use crate::db::Durability;
use crate::tx::failure::Error;
use crate::tx::final_response::FinalResponse;
use crate::tx::request_id::RequestId;

/// When a resource is committed: databases first, then releases.
///
/// `prepare` runs in the opposite order. Releases may write to the databases in their `prepare`.
/// The `prepare` of the databases comes after that, and checks that these writes can be committed
/// too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Resources whose commit may still fail: databases.
    Database,
    /// Releases: resources that are committed after all databases, such as leases, files and mails.
    /// If the commit of a release fails, the databases remain committed.
    Release,
}

/// Anything that is settled together with a request's transactions.
///
/// # Order
///
/// A commit has these steps:
///
/// 1. `prepare` of all resources: releases first, because they may write, then databases. Within a
///    phase, resources are called in joining order.
/// 2. `commit` of the databases, in joining order. The database that a resource has named by
///    [`commit_last`](SettleContext::commit_last) comes last.
/// 3. The wait until all of these commits are durable.
/// 4. `commit` of the releases.
///
/// If the only resource is a transaction of this library, step 1 is skipped, because its COMMIT makes
/// the same checks. For any other resource, `prepare` is always called before `commit`.
///
/// If the verdict is rollback, or if one of the steps 1 to 3 fails, `rollback` is called on all
/// resources that are not committed, databases first. It is called on each of them, even if another
/// one fails.
///
/// # Limits
///
/// The whole settlement runs in the request's task, within `settle_timeout`, under `catch_unwind`.
/// `prepare` and the first `commit` must leave a quarter of this time, at most one second, for the
/// following steps. Rollbacks and releases share the time that is left. If a step takes longer, its
/// future is dropped. The resource is dropped at the end of the settlement.
///
/// If a resource is dropped without a settlement, for example because the process ends, none of
/// these methods is called. Keep everything that must survive this in a database.
///
/// # Examples
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
    /// The name of the resource in the log, in the [live list](crate::tx::Live), and for observers.
    fn name(&self) -> Cow<'_, str>;

    /// When the resource is committed.
    fn phase(&self) -> Phase {
        Phase::Release
    }

    /// Prepares the commit. This is the last chance to refuse.
    ///
    /// If the resource has work that must be in the request's transaction, such as inserting an
    /// outbox row or releasing a lease, it does this work here, through
    /// [`SettleContext::transaction`].
    ///
    /// # Errors
    ///
    /// After an error, everything is rolled back, and the client receives the error.
    async fn prepare(&mut self, _context: &mut SettleContext<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Commits the resource.
    ///
    /// # Errors
    ///
    /// In the database phase: [`Error::Unknown`] if the resource may have been committed; any other
    /// error if it was not. In the release phase, errors are logged and change nothing.
    async fn commit(&mut self) -> Result<(), Error>;

    /// Returns a handle that waits until the commit would survive a power cut.
    ///
    /// This is called once, after a successful `commit`, and only for resources of
    /// [`Phase::Database`]. The resource is dropped before the wait begins. The waits of all
    /// databases run concurrently. If one fails, or takes longer than `settle_timeout`, the outcome
    /// is `unknown`.
    fn durability(&mut self) -> Durability {
        Durability::reached()
    }

    /// Undoes everything that the resource has done so far. If this needs a statement, run the
    /// statement in a transaction of [`SettleContext::begin_after_rollback`].
    ///
    /// # Errors
    ///
    /// Errors are logged. The other resources are rolled back nevertheless.
    async fn rollback(&mut self, _context: &mut SettleContext<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Called when [`Begin::retrying`](crate::Begin::retrying) begins, if this resource has joined
    /// before. The resource remembers what it has staged until now, so that it can forget what an
    /// attempt stages.
    fn attempts_begin(&mut self) {}

    /// Called when an attempt of [`Begin::retrying`](crate::Begin::retrying) has failed. Everything
    /// that the attempt has begun is being rolled back, and nothing is left of it.
    ///
    /// Returns whether a resource that has joined in the attempt stays joined: it has then forgotten
    /// what the attempt has staged. If it returns `false`, which is the default, it is
    /// [rolled back](Self::rollback) and dropped. A resource that had joined before the attempts
    /// stays in any case.
    fn attempt_failed(&mut self) -> bool {
        false
    }

    /// Returns the transaction, if this resource is one of this library.
    #[doc(hidden)]
    #[allow(private_interfaces)] // no other crate can have one
    fn as_database(&mut self) -> Option<&mut dyn DatabaseTransaction> {
        None
    }
}

/// What a resource can use while its request is settled: the request's id, the deadline, and views
/// of the request's transactions. Only settlement can end these transactions.
pub struct SettleContext<'a> {
    pub(in crate::tx) request: RequestId,
    pub(in crate::tx) deadline: Instant,
    /// All resources except the one that is being called.
    pub(in crate::tx) others: &'a mut [Option<Box<dyn Resource>>],
    /// The index of the database that is to be committed last.
    pub(in crate::tx) last: &'a mut Option<usize>,
    pub(in crate::tx) response: Option<&'a FinalResponse>,
}

impl SettleContext<'_> {
    /// Returns whether the request has another database than the one that is being called.
    pub(super) fn has_other_databases(&self) -> bool {
        let mut others = self.others.iter().flatten();
        others.any(|resource| resource.phase() == Phase::Database)
    }

    /// The id of the request that is being settled.
    pub fn request_id(&self) -> RequestId {
        self.request
    }

    /// Returns the response that will be sent if the request is committed. `None` unless
    /// [`Outstanding::capture_response`](crate::tx::Outstanding::capture_response) was called for
    /// the request, and after a verdict to roll back.
    pub fn response(&self) -> Option<&FinalResponse> {
        self.response
    }

    /// When the current step must have ended. Its future is dropped at that time.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}
