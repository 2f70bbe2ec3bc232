//! What a launch needs, and what the operator is told when something is missing or wrong.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `attached` | the lines that the launch code must have |
//! | `distinct` | two databases that are one |
//! | `configuration` | values that cannot be understood |
//! | `profiles` | failure injection is for development |

mod attached;
mod configuration;
mod distinct;
mod profiles;
