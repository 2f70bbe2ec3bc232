//! Why a request failed, and the response that its client receives.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `error` | [`Error`]: the failures of guards, handlers and settlement, each with its status |
//! | `problem` | [`Problem`]: an error as the client receives it |

mod error;
mod problem;

pub(in crate::tx) use error::Chain;
pub use error::Error;
pub use problem::Problem;
