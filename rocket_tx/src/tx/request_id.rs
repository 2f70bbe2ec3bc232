//! The id of a request.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The id of a request: a UUID version 7, minted here and never taken from the client, so that
/// what the audit trail says cannot be forged.
///
/// As a request guard it is the id that the response bears as `X-Request-Id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As it is written in the log and in `X-Request-Id`.
impl FromStr for RequestId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

impl RequestId {
    pub(super) fn mint() -> Self {
        Self(Uuid::now_v7())
    }
}
