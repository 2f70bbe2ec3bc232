//! Makes the response half of `Settlement` run after all other response fairings.
//!
//! Rocket runs response fairings in the order of attachment. A stage (a fairing with an ignite
//! callback, such as `AdHoc::on_ignite`) attaches its own fairings when it is ignited. A stage may
//! also attach further stages, which Rocket ignites in the next round. So the response half is
//! attached again in each round. It is a singleton, so Rocket moves it to the last place each time.
//! If a fairing still comes later, `tx::fairings` detects that, and the launch fails.

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::{Build, Rocket};

use super::atomic::AtomicMode;
use super::atomic_launch::set_up_atomic_commit;
use super::response::ResponseFairing;

/// In how many rounds the response half is attached again: one for the stages of the launch code,
/// and one for each of three levels of stages below them.
const ROUNDS: u8 = 4;

/// Attaches the response half in this round and in the rounds that remain.
pub(super) struct ComesLast {
    rounds: u8,
    atomic_commit: AtomicMode,
}

impl ComesLast {
    pub(in crate::tx) fn new(atomic_commit: AtomicMode) -> Self {
        Self {
            rounds: ROUNDS,
            atomic_commit,
        }
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
        if self.rounds > 1 {
            return Ok(rocket.attach(Self {
                rounds: self.rounds - 1,
                ..*self
            }));
        }
        // All databases are attached by now.
        match set_up_atomic_commit(&rocket, self.atomic_commit).await {
            Ok(()) => Ok(rocket),
            Err(reason) => {
                tracing::error!("{reason}");
                Err(rocket)
            }
        }
    }
}
