//! Requirements of a launch, and the error that the launch fails with if one is not met.
//!
//! | file | topic |
//! | --- | --- |
//! | `attached` | the fairings that the launch code must attach |
//! | `distinct` | two names for one database are refused |
//! | `configuration` | invalid values are refused |
//! | `profiles` | failure injection is for development |

mod attached;
mod configuration;
mod distinct;
mod profiles;
