//! Request-scoped transactions: a guard begins them, and settlement ends them.
//!
//! | module | contents |
//! | --- | --- |
//! | `guards` | guards for handlers ([`Tx`], [`Begin`], [`Read`]); the return types [`Commit`] and [`Rollback`] |
//! | `registry` | [`Outstanding`]: what a request has begun and not yet settled; [`Resource`]: the trait of everything that can join it |
//! | `settlement` | [`Settlement`]: decides the verdict, carries it out, and reports the outcome in the response |
//! | `monitor` | [`Observer`], [`Listener`], [`Live`]: observing transactions and settlements |
//! | `failure` | [`Error`] and [`Problem`]: why a request failed, and the response that reports it |
//! | `outside` | transactions outside of requests: `transaction` of the pools, [`TransactionOptions`](crate::db::TransactionOptions) |
//!
//! `guards` and `settlement` do not import each other: both work on `registry`. All of these
//! modules use the following files:
//!
//! | file | contents |
//! | --- | --- |
//! | `verdict` | [`Verdict`]: commit or roll back, and why; [`Outcome`]: what really happened |
//! | `context`, `request_id` | data of every request: its id, its method, and the token that makes shutdown wait for it |
//! | `fairings` | checks of the order of fairings: settlement runs last, client addresses are recorded first |
//! | `final_response`, `stored_response` | a response as it is about to leave; one that is sent again |
//! | `running_body` | the request whose response body the current thread polls |
//! | `traced` | [`traced`]: runs handlers inside the span of their request |
//! | `retry` | repeating work after a conflict |
//! | `panics` | detection of panics that a catcher would hide |
//!
//! Nothing here depends on locks, aggregates or the reference service.

mod context;
mod failure;
mod fairings;
mod final_response;
mod guards;
mod monitor;
mod outside;
mod panics;
mod registry;
mod request_id;
mod retry;
mod running_body;
mod settlement;
mod stored_response;
mod traced;
mod verdict;

pub use failure::{Error, Problem};
pub use final_response::{FinalBody, FinalResponse};
pub use guards::{Begin, Commit, Read, Rollback, Tx, bounded, problem_catchers};
pub use monitor::{
    FeedEvent, FeedEventKind, FeedItem, Listener, Live, LiveTransaction, Observer,
    PreparedTransaction, Step,
};
pub use registry::{
    AfterRollback, BeginStep, BorrowedTransaction, HookOutput, Mode, Outstanding, Phase, ReadOnly,
    ReadWrite, RepeatableRead, Resource, Serializable, SettleContext,
};
pub use request_id::RequestId;
pub use settlement::{Settlement, VetoContext};
pub use stored_response::StoredResponse;
pub use traced::traced;
pub use verdict::{Action, Outcome, Reason, SettlementReport, Verdict};

#[doc(hidden)] // documented in `extend`
pub use guards::{Lookup, attached, guard_failed};
#[doc(hidden)]
pub use registry::{Turn, rank_of};
