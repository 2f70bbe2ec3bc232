//! What other libraries want to do with the response of a request: read it when it is committed, or
//! send a stored one instead.

use std::borrow::Cow;

use crate::tx::stored_response::StoredResponse;

/// The wishes for the response of one request. They may still change while the request is settled.
#[derive(Default)]
pub(super) struct ResponsePlan {
    pub(super) capture_limit: Option<usize>,
    pub(super) stored: Option<StoredResponse>,
    pub(super) repeat_advice: Option<Cow<'static, str>>,
}
