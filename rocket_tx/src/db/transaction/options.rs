//! The options of transactions outside of requests.

use std::time::Duration;

use super::{Access, BeginOptions, Isolation};

/// The options of a transaction outside of requests. The default reads and writes, has the isolation
/// that the server is configured to, and is begun anew after conflicts for at most 5 s.
///
/// ```
/// use std::time::Duration;
/// use rocket_tx::db::{Isolation, TransactionOptions};
///
/// let options = TransactionOptions::new()
///     .isolation(Isolation::Serializable)
///     .retry_within(Duration::from_secs(60));
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TransactionOptions {
    pub(crate) begin: BeginOptions,
    pub(crate) retry_within: Duration,
}

impl TransactionOptions {
    /// How long work is begun anew by default: as long as a request waits for a connection by
    /// default.
    pub(crate) const RETRY_WITHIN: Duration = Duration::from_secs(5);

    /// Returns the default.
    pub fn new() -> Self {
        Self {
            begin: BeginOptions::default(),
            retry_within: Self::RETRY_WITHIN,
        }
    }

    /// Sets the isolation from other transactions.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.begin.isolation = isolation;
        self
    }

    /// Sets whether the transaction may write.
    pub fn access(mut self, access: Access) -> Self {
        self.begin.access = access;
        self
    }

    /// Sets how long after the call a new attempt may begin. An attempt that runs then is not
    /// interrupted. With zero, the work runs once.
    pub fn retry_within(mut self, limit: Duration) -> Self {
        self.retry_within = limit;
        self
    }
}

impl Default for TransactionOptions {
    fn default() -> Self {
        Self::new()
    }
}
