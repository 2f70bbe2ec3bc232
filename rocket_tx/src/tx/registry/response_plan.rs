//! What other libraries want to do with the response of a request: read it when it is committed, or
//! send a stored one instead.

use std::borrow::Cow;

use super::outstanding::Outstanding;
use crate::tx::failure::Error;
use crate::tx::stored_response::StoredResponse;

/// The wishes for the response of one request. They may still change while the request is settled.
#[derive(Default)]
pub(super) struct ResponsePlan {
    capture_limit: Option<usize>,
    stored: Option<StoredResponse>,
    repeat_advice: Option<Cow<'static, str>>,
}

impl Outstanding {
    /// Makes the final response available to resources in `prepare`, through
    /// [`SettleContext::response`](super::SettleContext::response).
    ///
    /// A body of at most `limit` bytes, whose size is known, is read into memory before the commit,
    /// and then sent from there. Other bodies are not read. If this is called more than once, the
    /// largest limit counts.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict.
    pub fn capture_response(&self, limit: usize) -> Result<(), Error> {
        let _open = self.open_state()?;
        let mut plan = self.response_plan.lock();
        plan.capture_limit = plan.capture_limit.max(Some(limit));
        Ok(())
    }

    /// Sends `stored` instead of the response that the request makes, because an earlier request has
    /// done the work already. Everything in this request is rolled back.
    ///
    /// The response carries the `Transaction-Outcome` of the earlier request, `committed`. Headers
    /// that fairings have set remain. The hooks of `after_commit` do not run, those of
    /// `after_rollback` do. In the log, in metrics and for observers this request is rolled back.
    ///
    /// A resource may also call this while the request is settled, in its step of `begin` or in
    /// `rollback`. The stored response is not sent if the request has panicked, has leaked a guard,
    /// or if it is not certain that it was rolled back.
    ///
    /// Returns [`Error::Replayed`], which the caller returns to its own caller.
    pub fn respond_with(&self, stored: StoredResponse) -> Error {
        self.mark_used();
        self.response_plan.lock().stored.get_or_insert(stored);
        Error::Replayed
    }

    /// Declares that the client may send the request again and that it will not be done twice. If
    /// the outcome is unknown, the problem that the client receives ends with `advice`, which says
    /// how.
    pub fn advise_repeat(&self, advice: impl Into<Cow<'static, str>>) {
        self.response_plan.lock().repeat_advice = Some(advice.into());
    }

    pub(in crate::tx) fn capture_limit(&self) -> Option<usize> {
        self.response_plan.lock().capture_limit
    }

    /// Whether a stored response is to be sent.
    pub(in crate::tx) fn is_replayed(&self) -> bool {
        self.response_plan.lock().stored.is_some()
    }

    pub(in crate::tx) fn take_stored_response(&self) -> Option<StoredResponse> {
        self.response_plan.lock().stored.take()
    }

    pub(in crate::tx) fn repeat_advice(&self) -> Option<Cow<'static, str>> {
        self.response_plan.lock().repeat_advice.clone()
    }
}
