//! What handlers take, and what they say by their return type.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `transaction` | [`Tx`] and [`Begin`], the guards that handlers write through |
//! | `read` | [`Read`], the guard for handlers that only read |
//! | `registry` | the guard `&Outstanding`, and what follows when a guard fails |
//! | `decision` | [`Commit`], [`Rollback`]: what a handler decides by its return type |
//! | `bounded` | [`bounded`]: handlers that are given up when they take too long |
//! | `catchers` | catchers that tell why a guard failed |
//! | `launch` | what a service must have so that guards work, checked at launch |

mod bounded;
mod catchers;
mod decision;
mod launch;
mod read;
mod registry;
mod transaction;

pub use bounded::bounded;
pub use catchers::problem_catchers;
pub use decision::{Commit, Rollback};
pub use launch::attached;
pub use read::Read;
pub use registry::guard_failed;
pub use transaction::{Begin, Tx};
