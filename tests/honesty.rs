//! A success is told only where everything was committed, whoever makes the response.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `fairings` | response fairings that are attached late, headers of a handler's own |
//! | `statuses` | guards and panics behind soothing catchers, statuses that are no answer, upgrades |

mod fairings;
mod statuses;
