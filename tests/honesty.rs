//! A response reports success only if everything was committed, whichever code made the response.
//!
//! | file | subject |
//! | --- | --- |
//! | `deadline` | one deadline for a settlement, and a shutdown that waits longer |
//! | `fairings` | response fairings that are attached late, headers that a handler sets |
//! | `late` | fairings before `Settlement`, and work that begins after the verdict |
//! | `meddlers` | resources that use the request's transactions during settlement |
//! | `statuses` | catchers that report success after a failure, 1xx statuses, upgrades |

mod deadline;
mod fairings;
mod late;
mod meddlers;
mod statuses;
