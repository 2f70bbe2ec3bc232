//! What a handler, or whoever acts for it, asks of the registry.

use std::borrow::Cow;

use rocket::http::Status;

use super::hooks::HookOutput;
use super::outstanding::{Entry, Outstanding};
use super::resource::Resource;
use crate::tx::failure::Error;

impl Outstanding {
    /// Joins a resource: it is settled with everything else.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the resource is dropped.
    pub fn join<R: Resource>(&self, resource: R) -> Result<(), Error> {
        let mut state = self.open_state()?;
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

    /// Decides that everything will be rolled back, whatever the handler answers. An answer that
    /// says failure stays; any other becomes `status`, with `reason` in its body. The first doom
    /// counts.
    ///
    /// `status` is a failure, from 400 to 599. Any other becomes a 500, and is logged: a rollback is
    /// never told as a success.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen: it is too late to change it.
    pub fn doom(&self, status: Status, reason: impl Into<Cow<'static, str>>) -> Result<(), Error> {
        let mut state = self.open_state()?;
        state.used = true;
        state.doom.get_or_insert((status, reason.into()));
        Ok(())
    }

    /// Runs `hook` once everything has been committed, outside the request's time, after the hooks
    /// that were left before it. It runs never if anything is rolled back or in doubt. Shutdown
    /// waits for it, bounded; a process that is killed forgets it.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the hook is dropped, and never runs.
    pub fn after_commit<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.open_state()?.hooks.after_commit(hook);
        Ok(())
    }

    /// The twin of [`after_commit`](Self::after_commit) for when everything was rolled back.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] when the verdict has fallen; the hook is dropped, and never runs.
    pub fn after_rollback<F>(&self, hook: F) -> Result<(), Error>
    where
        F: Future<Output: HookOutput> + Send + 'static,
    {
        self.open_state()?.hooks.after_rollback(hook);
        Ok(())
    }
}
