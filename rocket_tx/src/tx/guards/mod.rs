//! Request guards, and the return types by which a handler decides.
//!
//! | file | contents |
//! | --- | --- |
//! | `transaction` | [`Tx`] and [`Begin`], the guards for handlers that write |
//! | `retrying` | [`Begin::retrying`]: work that is begun anew after a conflict |
//! | `read` | [`Read`], the guard for handlers that only read |
//! | `lookup` | [`Lookup`], a read by a library |
//! | `registry` | the guard `&Outstanding`, and the handling of a failed guard |
//! | `decision` | [`Commit`], [`Rollback`]: return types that decide the verdict |
//! | `advice` | warnings in the debug profile |
//! | `bounded` | [`bounded`]: a time limit for handlers |
//! | `catchers` | catchers that report why a guard failed |
//! | `launch` | the check at launch that a service has everything that guards need |

mod advice;
mod bounded;
mod catchers;
mod decision;
mod launch;
mod lookup;
mod read;
mod registry;
mod retrying;
mod transaction;

pub use bounded::bounded;
pub use catchers::problem_catchers;
pub use decision::{Commit, Rollback};
pub use launch::attached;
pub use lookup::Lookup;
pub use read::Read;
pub use registry::guard_failed;
pub use transaction::{Begin, Tx};
