//! The service, its databases and its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rocket::futures::future::{join, join_all};
use rocket::serde::json::Value;
use rocket::tokio::time::sleep;

use super::figures::{Request, Stored};
use super::plan::{Event, Kind, Moment, Victim};
use super::{Atomic, Pair};
use crate::history::checker::Operation;
use crate::history::network::Network;
use crate::history::places::Place;
use crate::support::{Break, Cluster, Databases, In, Proxy, eventually, eventually_or};

const CLIENTS: usize = 6;

/// How long recovery may take to finish prepared transactions.
const RECOVERY: Duration = Duration::from_secs(60);

pub struct Site {
    network: Network,
    databases: Arc<Databases>,
    place: Place,
}

impl Site {
    pub async fn new(pair: &Pair) -> Self {
        let (network, databases) = Network::new(pair.main, pair.audit).await;
        let databases = Arc::new(databases);
        // Without atomic commit, such a launch fails.
        let variables: &[_] = match pair.atomic {
            // Recovery waits for `settle_timeout` before it finishes what another process has
            // prepared.
            Atomic::Yes => &[
                ("ROCKET_ATOMIC_COMMIT", "required"),
                ("ROCKET_SETTLE_TIMEOUT", "\"3s\""),
            ],
            Atomic::No => &[],
        };
        Self {
            network,
            place: Place::with(&databases, variables).await,
            databases,
        }
    }

    pub fn restarts(&self) -> usize {
        self.place.restarts.load(SeqCst)
    }

    /// Sends requests of several clients while the event happens. Appends the requests to
    /// `requests`. All of them have ended, and everything is running again, when it returns.
    /// Returns `false` if the event did not happen.
    pub async fn suffer(
        &mut self,
        number: usize,
        event: &Event,
        requests: &mut Vec<Request>,
    ) -> bool {
        let is_over = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let (place, network) = (&self.place, &mut self.network);
        let send = async |fault: &str| {
            let title = format!("{number}-{}", next.fetch_add(1, SeqCst));
            let operation = Operation::Todo {
                title: title.clone(),
            };
            Request {
                event: number,
                title,
                response: place.send(&operation, fault).await,
            }
        };
        let client = async || {
            let mut sent = Vec::new();
            while !is_over.load(SeqCst) {
                sent.push(send("").await);
            }
            sent
        };
        let strike = async {
            sleep(event.before).await;
            let (happened, request) = match &event.kind {
                Kind::Fault(fault) => {
                    let request = send(fault).await;
                    assert_known(fault, &request);
                    (request.response.is_none(), Some(request))
                }
                _ => (strike(event, place, network).await, None),
            };
            sleep(event.after).await;
            is_over.store(true, SeqCst);
            (happened, request)
        };
        let clients = join_all((0..CLIENTS).map(|_| client()));
        let (sent, (happened, request)) = join(clients, strike).await;
        requests.extend(sent.into_iter().flatten().chain(request));

        let http = place.http();
        if event.restarts {
            place.kill().await;
        }
        if http.request("GET /healthz").send().await.is_err() {
            place.revive(&http).await;
        }
        happened
    }

    /// Waits until nothing is outstanding, no session of a killed process is in a transaction, and
    /// nothing is prepared. Returns the transactions that
    /// are still prepared when recovery should have finished.
    pub async fn quiet(&self) -> Vec<String> {
        eventually("nothing is outstanding", async || {
            let registry: Value = self.place.http().send("GET /registry").await.json();
            registry["outstanding"].as_array().unwrap().is_empty()
        })
        .await;
        let mut busy = Vec::new();
        eventually_or("no session is in a transaction", &mut busy, async |busy| {
            *busy = self.network.in_transactions().await;
            busy.is_empty()
        })
        .await;
        let started = Instant::now();
        loop {
            let prepared = self.network.prepared().await;
            if prepared.is_empty() || started.elapsed() > RECOVERY {
                return prepared;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stored(&self) -> Stored {
        const MAIN: &str = "SELECT title FROM todos";
        const AUDIT: &str = "SELECT subject FROM audit";

        // `http://<title>/todos/<id>`
        let title = |subject: &String| subject.split('/').nth(2).unwrap().to_owned();
        let subjects = self.databases.texts(In::Audit, AUDIT).await;
        Stored {
            main: self.databases.texts(In::Main, MAIN).await,
            audit: subjects.iter().map(title).collect(),
        }
    }
}

/// Fails if the service does not know the fault.
fn assert_known(fault: &str, request: &Request) {
    let status = request.response.as_ref().map(|response| response.status);
    assert!(
        !matches!(status, Some(403 | 422)),
        "the service refused the fault {fault:?}: {request:?}"
    );
}

/// Carries out an event. Returns `false` if it did not happen.
async fn strike(event: &Event, place: &Place, network: &mut Network) -> bool {
    match &event.kind {
        Kind::Kill => place.kill().await,
        Kind::Pause => place.pause(event.pause).await,
        Kind::Fault(_) => return false,
        Kind::Network(disturbance) => {
            let mut rng = Rng::with_seed(event.seed);
            return network.disturb(*disturbance, &mut rng).await;
        }
        Kind::Statement {
            moment,
            statement,
            database,
            victim,
        } => {
            let how = match moment {
                Moment::Before | Moment::Late => Break::Stall,
                Moment::After => Break::StallReply,
            };
            let kill = async |server: &mut Cluster, proxy: &Proxy| {
                let is_late = *moment == Moment::Late;
                match victim {
                    Victim::Service => {
                        place.kill().await;
                        // The next process starts while the server still has this session.
                        sleep(event.pause).await;
                        if is_late {
                            proxy.deliver();
                        }
                    }
                    Victim::Server => {
                        server.kill().await;
                        sleep(event.pause).await;
                        server.restart().await;
                    }
                }
                is_late
            };
            return network.strike_at(*database, statement, how, kill).await;
        }
    }
    true
}
