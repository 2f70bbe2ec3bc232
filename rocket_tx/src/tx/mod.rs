//! Request-scoped transactions: begun by a guard, settled by the response.
//!
//! | room | what it holds |
//! | --- | --- |
//! | `guards` | what handlers take ([`Tx`], [`Begin`], [`Read`]), and what they say by their return type |
//! | `registry` | [`Outstanding`]: what a request has begun and not yet settled; [`Resource`]: how anything else joins |
//! | `settlement` | [`Settlement`]: deciding what becomes of it, doing it, and telling the client |
//! | `monitor` | [`Observer`], [`Listener`], [`Live`]: who watches |
//! | `failure` | [`Error`] and [`Problem`]: why a request failed, and how its client is told |
//!
//! Guards and settlement do not know each other: both work on the registry. Below all rooms lie
//!
//! | file | what it holds |
//! | --- | --- |
//! | `verdict` | [`Verdict`], [`Outcome`]: what is to be done, and why, and what became of it |
//! | `context`, `request_id` | what every request carries: its id, its method, its place among those in flight |
//! | `fairings` | in which order fairings run: settlement last, and the addresses of clients noted first |
//! | `running_body` | which request's body runs on a thread |
//! | `traced` | [`traced`]: handlers inside the span of their request |
//! | `panics` | noticing a panic that a catcher would paper over |
//!
//! Nothing here knows of locks, aggregates or the reference service.

mod context;
mod failure;
mod fairings;
mod guards;
mod monitor;
mod panics;
mod registry;
mod request_id;
mod running_body;
mod settlement;
mod traced;
mod verdict;

pub use failure::{Error, Problem};
pub use guards::{Begin, Commit, Read, Rollback, Tx, bounded, problem_catchers};
pub use monitor::{Event, EventKind, FeedItem, Listener, Live, LiveTransaction, Observer, Step};
pub use registry::{
    AfterRollback, BorrowedTransaction, HookOutput, Mode, Outstanding, Phase, ReadOnly, ReadWrite,
    RepeatableRead, Resource, Serializable, SettleContext,
};
pub use request_id::RequestId;
pub use settlement::{Settlement, VetoContext};
pub use traced::traced;
pub use verdict::{Action, Outcome, Reason, SettlementReport, Verdict};

#[doc(hidden)] // documented in `extend`
pub use guards::{attached, guard_failed};
#[doc(hidden)]
pub use registry::{Turn, rank_of};
