//! Why a request failed, and how its client is told.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `error` | [`Error`]: the failures of guards, handlers and settlements, each with its status |
//! | `problem` | [`Problem`]: an error as a client sees it |

mod error;
mod problem;

pub(in crate::tx) use error::Chain;
pub use error::Error;
pub use problem::Problem;
