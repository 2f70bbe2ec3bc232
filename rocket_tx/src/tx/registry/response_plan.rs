//! What other libraries do with the response of a request: read it before the commit, or send a
//! stored one instead.

use std::borrow::Cow;

use crate::tx::stored_response::StoredResponse;

/// The plan for the response of one request. It may still change while the request is settled.
#[derive(Default)]
pub(super) struct ResponsePlan {
    pub(super) capture_limit: Option<usize>,
    pub(super) stored: Option<StoredResponse>,
    pub(super) repeat_advice: Option<RepeatAdvice>,
}

/// How a client learns an unknown outcome: by sending the request again.
#[derive(Clone)]
pub(in crate::tx) struct RepeatAdvice {
    /// The database in which a repetition changes nothing twice.
    pub(in crate::tx) database: &'static str,
    pub(in crate::tx) advice: Cow<'static, str>,
}
