//! Deciding what becomes of a request's transactions, doing it, and telling the client.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `fairing`, `settings` | [`Settlement`]: the fairing that a service attaches, and what it was told |
//! | `response` | its half that sees the response: decide, settle, rewrite, report |
//! | `coming_last` | attaching that half behind all other response fairings |
//! | `run` | carrying the verdict out on every resource |
//! | `rewrite` | what a response becomes |
//! | `replace` | making a response another one: what of it stays |
//! | `read_body` | bodies that hold a `Read`: how long they may wait for their client |
//! | `peer` | the connection of one client: whether its bytes arrive, and closing it |

mod coming_last;
mod fairing;
mod peer;
mod read_body;
mod replace;
mod response;
mod rewrite;
mod run;
mod settings;

pub use fairing::Settlement;
pub use settings::VetoContext;
