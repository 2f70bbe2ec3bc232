//! A success is told only where everything was committed, whoever makes the response.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `deadline` | one deadline for a settlement, and a shutdown that waits longer |
//! | `fairings` | response fairings that are attached late, headers of a handler's own |
//! | `late` | what comes before `Settlement`, and what comes after the verdict |
//! | `meddlers` | resources that meddle with the request's transactions while it is settled |
//! | `statuses` | guards and panics behind soothing catchers, statuses that are no answer, upgrades |

mod deadline;
mod fairings;
mod late;
mod meddlers;
mod statuses;
