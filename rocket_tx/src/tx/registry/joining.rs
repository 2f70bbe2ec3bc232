//! The registry's methods for handlers: join, doom and hooks.

use std::borrow::Cow;

use rocket::http::Status;

use super::hooks::HookOutput;
use super::outstanding::{Entry, Outstanding};
use super::resource::Resource;
use crate::tx::failure::Error;

impl Outstanding {
    /// Adds a resource to the registry. The resource is settled together with everything else.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict, [`Error::Retrying`] beside the attempts of
    /// [`retrying`](crate::Begin::retrying). The resource is dropped.
    pub fn join<R: Resource>(&self, resource: R) -> Result<(), Error> {
        let mut state = self.state_of_attempt()?;
        let name = resource.name().into_owned().into();
        let live = self.live.enter(
            self.request,
            state.route.clone(),
            name,
            std::any::type_name::<R>(),
        );
        state.used = true;
        state
            .entries
            .push(Entry::Resource(Box::new(resource), live));
        Ok(())
    }

    /// Dooms the request: everything will be rolled back, whatever the handler responds.
    ///
    /// A response that is already a failure is sent unchanged. Any other response is replaced by
    /// one with `status`, and with `reason` in its body. If `doom` is called more than once, the
    /// first call counts.
    ///
    /// `status` must be a failure, from 400 to 599. If it is not, the client receives a 500, and an
    /// error is logged. A doomed request is never reported as a success.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict, which can no longer be changed.
    pub fn doom(&self, status: Status, reason: impl Into<Cow<'static, str>>) -> Result<(), Error> {
        let mut state = self.open_state()?;
        state.used = true;
        let doom = (status, reason.into());
        if let Some(attempting) = state.attempting.as_mut().filter(|it| !it.is_here()) {
            attempting.doom.get_or_insert_with(|| doom.clone());
        }
        state.doom.get_or_insert(doom);
        Ok(())
    }

    /// Adds a hook that runs after everything has been committed.
    ///
    /// The response does not wait for the hook. The hooks of a request run one after the other, in
    /// the order in which they were added. If anything is rolled back, or if the outcome is
    /// unknown, the hook never runs. Shutdown waits for hooks, for a limited time. If the process
    /// is killed, the hook is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict, [`Error::Retrying`] beside the attempts of
    /// [`retrying`](crate::Begin::retrying). The hook is dropped, and never runs.
    pub fn after_commit<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.state_of_attempt()?.hooks.after_commit(hook);
        Ok(())
    }

    /// Adds a hook that runs after the settlement, whatever its outcome is, and before the response
    /// leaves. For work that must survive a rollback, such as the audit of refused attempts.
    ///
    /// Let the hook open a transaction of its own. It cannot begin before the settlement: on SQLite
    /// the request's own transaction holds the only connection that writes, and on Postgres every
    /// request would need two connections.
    ///
    /// ```
    /// use rocket::State;
    /// use rocket::http::Status;
    /// use rocket_tx::db::SqlitePool;
    /// use rocket_tx::rocket_db_pools::{self, Database};
    /// use rocket_tx::{Error, Outstanding, Tx};
    ///
    /// #[derive(Database)]
    /// #[database("main")]
    /// struct Main(SqlitePool);
    ///
    /// #[rocket::post("/login/<name>")]
    /// async fn login(
    ///     name: String,
    ///     mut tx: Tx<Main>,
    ///     main: &State<Main>,
    ///     outstanding: &Outstanding,
    /// ) -> Result<Status, Error> {
    ///     let main = SqlitePool::clone(main);
    ///     outstanding.after_settlement(async move {
    ///         main.transaction(async |mut tx| {
    ///             let insert = sqlx::query("INSERT INTO attempts (name) VALUES ($1)");
    ///             insert.bind(&name).execute(&mut *tx).await?;
    ///             Ok(())
    ///         })
    ///         .await
    ///     })?;
    ///     sqlx::query("UPDATE users SET seen = TRUE").execute(&mut *tx).await?;
    ///     Ok(Status::Unauthorized) // rolls back; the attempt is recorded
    /// }
    /// ```
    ///
    /// The hooks of a request run one after the other: first those of `after_settlement`, in the
    /// order in which they were added, then the others. The response waits for them, at most
    /// `settle_timeout`. An error or a panic is logged and counted by
    /// [`Live::hook_failures`](crate::tx::Live::hook_failures); the response is not changed. The hook
    /// also runs if the outcome is partial or unknown, and if the request is never settled because a
    /// fairing has panicked. If the process is killed, it is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict, [`Error::Retrying`] beside the attempts of
    /// [`retrying`](crate::Begin::retrying). The hook is dropped, and never runs.
    pub fn after_settlement<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.state_of_attempt()?.hooks.after_settlement(hook);
        Ok(())
    }

    /// Adds a hook that runs after everything has been rolled back. Otherwise it behaves like
    /// [`after_commit`](Self::after_commit).
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict, [`Error::Retrying`] beside the attempts of
    /// [`retrying`](crate::Begin::retrying). The hook is dropped, and never runs.
    pub fn after_rollback<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.state_of_attempt()?.hooks.after_rollback(hook);
        Ok(())
    }
}
