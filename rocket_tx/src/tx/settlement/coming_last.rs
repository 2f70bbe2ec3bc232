//! Seeing to it that responses are settled after all other response fairings have run.
//!
//! Rocket runs response fairings in the order in which they were attached. A stage attaches its own
//! while it is ignited, and may attach further stages, which are ignited in the next round. So the
//! response half is attached anew in each round: as a singleton it leaves its former place for the
//! last one. A fairing that comes even later is found at launch.

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::{Build, Rocket};

use super::response::ResponseFairing;

/// How deep stages may attach stages.
const ROUNDS: u8 = 4;

/// Attaches the response half, now and in the rounds to come.
pub(super) struct ComesLast {
    rounds: u8,
}

impl ComesLast {
    pub(in crate::tx) fn new() -> Self {
        Self { rounds: ROUNDS }
    }
}

#[rocket::async_trait]
impl Fairing for ComesLast {
    fn info(&self) -> Info {
        Info {
            name: "Settlement comes last",
            kind: Kind::Ignite,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        let rocket = rocket.attach(ResponseFairing);
        Ok(match self.rounds {
            0 | 1 => rocket,
            rounds => rocket.attach(Self { rounds: rounds - 1 }),
        })
    }
}
