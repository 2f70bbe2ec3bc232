//! Requirements of a launch, and the error that the launch fails with if one is not met.
//!
//! | file | topic |
//! | --- | --- |
//! | `advice` | warnings about mistakes that a quiet test does not show |
//! | `attached` | the fairings that the launch code must attach |
//! | `distinct` | two names for one database are refused |
//! | `configuration` | invalid values are refused |
//! | `urls` | the URL names the backend of the pool; migrations are for this backend |
//! | `profiles` | failure injection is for development |

mod advice;
mod attached;
mod configuration;
mod distinct;
mod profiles;
mod urls;
