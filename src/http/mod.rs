//! HTTP, as every part of the service speaks it.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `endpoints` | [`Endpoints`]: the handlers of a part, as routes and in the contract, from one list |
//! | `body` | [`Body`]: a JSON body that was checked |
//! | `field` | rules for the fields of a body, in the code and in the contract |
//! | `page` | [`Page`]: `?limit=` and `?after=` |
//! | `error` | [`Error`]: how a handler fails |
//! | `problems` | [`Fails`]: the failures of an operation, in the contract |
//! | `methods` | OPTIONS, and 405 |
//! | `cors` | access from pages of other hosts |
//! | `decorate` | handlers around handlers |
//! | `tls` | TLS for outgoing calls |
//!
//! Nothing here knows a todo.

mod body;
mod cors;
mod decorate;
mod endpoints;
mod error;
mod field;
mod methods;
mod page;
mod problems;
mod tls;

pub(crate) use body::{Body, Rules};
pub(crate) use cors::Cors;
pub(crate) use decorate::decorate;
pub(crate) use endpoints::{Endpoints, endpoints, operations_of, tag_of};
pub(crate) use error::{Error, respond};
pub(crate) use field::{Id, SafeInteger, ShortText, SingleLineText, check_text, safe_integer};
pub(crate) use methods::answer_every_method;
pub(crate) use page::Page;
pub(crate) use problems::{BadBody, Fails, describe_problems};
pub(crate) use tls::install_tls_provider;
