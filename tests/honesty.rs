//! A success is told only where everything was committed, whoever makes the response.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `statuses` | guards and panics behind soothing catchers, statuses that are no answer, upgrades |

mod statuses;
