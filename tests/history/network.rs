//! Random faults of the network and of the database server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use rocket::tokio::time::sleep;

use super::places::SETTLE;
use crate::support::{Break, Cluster, Databases, In, Newcomers, Proxy};

/// A server for one history, and the proxies in front of its databases `main` and `audit`.
pub struct Network {
    cluster: Cluster,
    proxies: [Proxy; 2],
}

/// One fault. It lasts until [`Network::disturb`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// Connections are closed.
    Cut,
    /// Connections are reset, and data in transit is lost.
    Reset,
    /// Connections are silent for a while. What is sent meanwhile arrives late.
    Silent,
    /// Connections are silent, and then closed.
    SilentAndCut,
    /// Connections are closed, and new ones are refused.
    Refused,
    /// Connections are closed, and new ones never get a reply.
    Ignored,
    /// A COMMIT does not arrive, and its connection is closed.
    CommitLost,
    /// A COMMIT arrives, its reply is lost, and its connection is closed.
    ReplyLost,
    /// A COMMIT does not arrive, and its connection is silent for longer than the service waits.
    CommitSilent,
    /// The reply to a COMMIT is lost. New connections are refused for longer than the service tries
    /// to query the outcome.
    ReplyLostAndRefused,
    /// A COMMIT does not arrive. New connections are refused for the same time.
    CommitLostAndRefused,
    /// The server crashes.
    Crash,
    /// All processes of the server are killed, and connections are reset.
    Kill,
}

impl Disturbance {
    pub const ALL: [Self; 13] = [
        Self::Cut,
        Self::Reset,
        Self::Silent,
        Self::SilentAndCut,
        Self::Refused,
        Self::Ignored,
        Self::CommitLost,
        Self::ReplyLost,
        Self::CommitSilent,
        Self::ReplyLostAndRefused,
        Self::CommitLostAndRefused,
        Self::Crash,
        Self::Kill,
    ];

    /// Draws a fault. Faults that lose a COMMIT are drawn more often, because they matter most.
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..3) {
            0 => Self::ALL[rng.usize(6..9)],
            _ => Self::ALL[rng.usize(..Self::ALL.len())],
        }
    }

    /// How this fault breaks a COMMIT, if it does.
    fn lost_commit(self) -> Option<Break> {
        match self {
            Self::CommitLost | Self::CommitLostAndRefused => Some(Break::Before),
            Self::ReplyLost | Self::ReplyLostAndRefused => Some(Break::After),
            Self::CommitSilent => Some(Break::Stall),
            _ => None,
        }
    }
}

/// How often each fault has happened.
pub type Disturbances = BTreeMap<Disturbance, usize>;

impl Network {
    pub async fn new() -> (Self, Databases) {
        let cluster = Cluster::start().await;
        let mut databases = Databases::on_cluster(&cluster).await;
        let main = databases.by_proxy(In::Main).await;
        let audit = databases.by_proxy(In::Audit).await;
        let proxies = [main, audit];
        (Self { cluster, proxies }, databases)
    }

    /// Causes one fault after another until `done`. No fault lasts when it returns.
    pub async fn trouble(&mut self, seed: u64, done: &AtomicBool) -> Disturbances {
        let mut rng = Rng::with_seed(seed);
        let mut happened = Disturbances::new();
        while !done.load(SeqCst) {
            sleep(Duration::from_millis(rng.u64(50..800))).await;
            let disturbance = Disturbance::draw(&mut rng);
            if self.disturb(disturbance, &mut rng).await {
                *happened.entry(disturbance).or_default() += 1;
            }
        }
        happened
    }

    /// Causes a fault. Returns `false` if it did not happen, because no COMMIT was sent.
    async fn disturb(&mut self, disturbance: Disturbance, rng: &mut Rng) -> bool {
        let time = Duration::from_millis(rng.u64(20..1_500));
        let at_both = rng.bool();
        let one = rng.usize(..2);
        let proxies = match at_both {
            true => &self.proxies[..],
            false => &self.proxies[one..=one],
        };
        let newcomers = async |newcomers| {
            for proxy in proxies {
                proxy.newcomers(newcomers).await;
            }
        };
        match disturbance {
            Disturbance::Cut => proxies.iter().for_each(Proxy::cut),
            Disturbance::Reset => proxies.iter().for_each(Proxy::reset),
            Disturbance::Silent | Disturbance::SilentAndCut => {
                proxies.iter().for_each(Proxy::freeze);
                sleep(time).await;
                if disturbance == Disturbance::SilentAndCut {
                    proxies.iter().for_each(Proxy::cut);
                }
                proxies.iter().for_each(Proxy::thaw);
            }
            Disturbance::Refused | Disturbance::Ignored => {
                newcomers(match disturbance {
                    Disturbance::Refused => Newcomers::Refused,
                    _ => Newcomers::Ignored,
                })
                .await;
                proxies.iter().for_each(Proxy::cut);
                sleep(time).await;
                newcomers(Newcomers::Served).await;
                // Close the ignored connections, so that clients need not wait any longer.
                proxies.iter().for_each(Proxy::cut);
            }
            Disturbance::CommitLost | Disturbance::ReplyLost | Disturbance::CommitSilent => {
                let proxy = &self.proxies[one];
                let is_lost = lose_a_commit(proxy, disturbance).await;
                if disturbance == Disturbance::CommitSilent {
                    sleep(SETTLE + Duration::from_millis(300)).await;
                    proxy.cut();
                }
                return is_lost;
            }
            Disturbance::ReplyLostAndRefused | Disturbance::CommitLostAndRefused => {
                let proxy = &self.proxies[one];
                proxy.newcomers(Newcomers::Refused).await;
                let is_lost = lose_a_commit(proxy, disturbance).await;
                if is_lost {
                    sleep(SETTLE + Duration::from_millis(300)).await;
                }
                proxy.newcomers(Newcomers::Served).await;
                return is_lost;
            }
            Disturbance::Crash => {
                self.cluster.crash().await;
                sleep(time).await;
                self.cluster.restart().await;
            }
            Disturbance::Kill => {
                // The connections are reset first, so that no client sees the server end.
                proxies.iter().for_each(Proxy::reset);
                self.cluster.kill().await;
                sleep(time).await;
                self.cluster.restart().await;
            }
        }
        true
    }
}

/// Waits up to a second for a COMMIT and breaks it. Returns `false` if no COMMIT was sent.
async fn lose_a_commit(proxy: &Proxy, disturbance: Disturbance) -> bool {
    let Some(how) = disturbance.lost_commit() else {
        return false;
    };
    proxy.set("COMMIT", how);
    for _ in 0..100 {
        if proxy.has_sprung() {
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
    !proxy.unset()
}
