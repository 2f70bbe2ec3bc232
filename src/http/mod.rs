//! The HTTP code that the other modules of the service share. It does not depend on them.
//!
//! | file | contents |
//! | --- | --- |
//! | `endpoints` | [`Endpoints`]: one list of handlers that makes routes and contract |
//! | `body` | [`Body`]: a JSON body that has been checked |
//! | `field` | rules for the fields of a body, as code and in the contract |
//! | `page` | [`Page`]: `?limit=` and `?after=` |
//! | `error` | [`Error`]: the error type of all handlers |
//! | `problems` | [`Fails`]: the failures of an operation in the contract |
//! | `methods` | responses to OPTIONS and to methods that a path does not have |
//! | `cors` | headers that give access to pages of other origins |
//! | `decorate` | wraps handlers in other handlers |
//! | `tls` | TLS for outgoing calls |

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
pub(crate) use methods::add_missing_methods;
pub(crate) use page::Page;
pub(crate) use problems::{BadBody, Fails, describe_problems, problems as responses};
pub(crate) use tls::install_tls_provider;
