//! Settlement: decide the verdict on a request's transactions, carry it out, and report the outcome
//! to the client.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `fairing`, `settings` | [`Settlement`]: the fairing that a service attaches; its settings |
//! | `response` | the response half of the fairing: decide, settle, rewrite, report |
//! | `capture` | reads a response before the commit, for resources that store it |
//! | `coming_last` | attaches the response half after all other response fairings |
//! | `run` | carries the verdict out on every resource |
//! | `run/atomic` | commits several databases, all or none |
//! | `atomic_launch` | sets atomic commit up when all databases are attached |
//! | `begun_decision` | the progress of an atomic commit; leaves to recovery what is not finished |
//! | `atomic` | between which databases a commit is atomic, and which one decides |
//! | `rewrite` | decides whether the response is kept or replaced by a problem |
//! | `replace` | replaces a response by a problem, and decides which headers are kept |
//! | `read_body` | limits how long a body that holds a `Read` waits for its client |
//! | `peer` | finds the connection of a client, reads its progress, and closes it |

mod atomic;
mod atomic_launch;
mod begun_decision;
mod capture;
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
