//! A response as it is about to leave, for resources that store it.

use rocket::http::Status;

/// The response of a request that is to be committed: status, headers and body.
///
/// It contains everything that the handler and all fairings have put into the response. The headers
/// that settlement adds itself are missing: `X-Request-Id`, `Transaction-Outcome` and
/// `Transaction-Pending`.
///
/// Returned by [`SettleContext::response`](super::SettleContext::response).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FinalResponse {
    /// The status.
    pub status: Status,
    /// The headers, each with its name and value. A name may occur more than once.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: FinalBody,
}

/// The body of a [`FinalResponse`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinalBody {
    /// All bytes of the body.
    Bytes(Vec<u8>),
    /// The body has this many bytes, which is more than the limit.
    TooLarge(usize),
    /// The body is a stream, whose bytes do not exist yet.
    Streamed,
}

impl FinalResponse {
    /// Returns the first value of the header `name`, in any letter case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(&**value))
    }
}
