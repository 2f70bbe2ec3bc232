//! Request-scoped transactions: begun by a guard, settled by the response.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `guard` | [`Tx`] and [`Begin`], the guards that handlers write through |
//! | `read` | [`Read`], the guard for handlers that only read |
//! | `read_body` | bodies that hold a `Read`: how long they may wait for their client |
//! | `peer` | the connection of one client: whether its bytes arrive, and closing it |
//! | `mode` | isolation and access, as part of a guard's type |
//! | `outstanding` | [`Outstanding`]: everything begun in this request and not yet settled |
//! | `slot` | the place of that registry in its request |
//! | `checkout` | checking a transaction out of it, begun on first use |
//! | `resource` | [`Resource`] and [`Settling`]: the door by which anything else joins |
//! | `settling` | the transactions of a request, as a resource may use them: [`BorrowedTransaction`], [`AfterRollback`] |
//! | `require` | transactions that a resource will need, begun as late as may be |
//! | `lent` | an open transaction, as the resource that it is |
//! | `verdict` | [`Verdict`], [`Outcome`]: what is to be done, and why, and what became of it |
//! | `decision` | [`Commit`], [`Rollback`]: what a handler decides by its return type |
//! | `settlement`, `settings` | [`Settlement`]: the fairing that a service attaches, and what it was told |
//! | `answer` | the half of it that sees the response: reads the verdict off it, and has it settled |
//! | `coming_first` | whether a client's address was noted before a fairing could change it |
//! | `coming_last` | seeing to it that no response fairing runs after it |
//! | `collected` | what is taken out of the registry to be settled |
//! | `settle` | carrying the verdict out on every resource |
//! | `replace` | making a response another one: what of it stays |
//! | `hooks` | work for after the commit, and for after the rollback |
//! | `sentinel` | what a service must have so that guards work, checked at launch |
//! | `observe` | [`Observer`]: told before and after each step |
//! | `bounded` | [`bounded`]: handlers that are given up when they take too long |
//! | `traced` | [`traced`]: handlers inside the span of their request |
//! | `error`, `problem`, `catchers` | the failure table, and how it is told to clients |
//! | `context`, `request_id` | what every request carries: its id, its method, its place among those in flight |
//! | `feed` | [`Listener`]: what happens to requests, as it happens |
//! | `monitor` | who is told of what happens |
//! | `live` | [`Live`]: what is outstanding or condemned in the whole service |
//! | `slow` | warning of what is outstanding for long |
//! | `panics` | noticing a panic that a catcher would paper over |
//!
//! The room knows nothing of locks, aggregates or the reference service.

mod answer;
mod bounded;
mod catchers;
mod checkout;
mod collected;
mod coming_last;
mod context;
mod decision;
mod error;
mod fairings;
mod feed;
mod guard;
mod hooks;
mod lent;
mod live;
mod mode;
mod monitor;
mod observe;
mod outstanding;
mod panics;
mod peer;
mod problem;
mod read;
mod read_body;
mod replace;
mod request_id;
mod require;
mod resource;
mod running_body;
mod sentinel;
mod settings;
mod settle;
mod settlement;
mod settling;
mod slot;
mod slow;
mod traced;
mod verdict;

pub use bounded::bounded;
pub use catchers::problem_catchers;
pub use decision::{Commit, Rollback};
pub use error::Error;
pub use feed::{Event, Happened, Heard, Listener};
pub use guard::{Begin, Tx};
pub use hooks::HookOutput;
pub use live::{Live, LiveTransaction};
pub use mode::{Mode, ReadOnly, ReadWrite, RepeatableRead, Serializable};
pub use observe::{Observer, Step};
pub use outstanding::Outstanding;
pub use problem::Problem;
pub use read::Read;
pub use request_id::RequestId;
pub use resource::{Phase, Resource, Settling};
pub use settings::Vetoed;
pub use settlement::Settlement;
pub use settling::{AfterRollback, BorrowedTransaction};
pub use traced::traced;
pub use verdict::{Action, Outcome, Reason, Settled, Verdict};

pub(crate) use guard::failed;
pub(crate) use sentinel::attached;
