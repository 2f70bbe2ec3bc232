//! A network that carries nothing any more and closes no connection.

use std::time::{Duration, Instant};

use rocket::tokio::io::copy_bidirectional;
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::sync::watch;
use rocket::tokio::{select, spawn};
use rocket_tx_aggregates::lock::{Hold, LockError};

use super::{Leases, manager_on};
use crate::support::{Backend, Break, Cluster, Proxy, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// How often it has died, and whether it is dead now.
#[derive(Clone, Copy, Default)]
struct State {
    deaths: u32,
    is_dead: bool,
}

/// A way to the server whose connections can all go silent, for ever.
struct Road {
    url: String,
    state: watch::Sender<State>,
}

impl Road {
    async fn to(url: &str) -> Self {
        let authority = url.split(['@', '/']).nth(3).unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let url = url.replace(&authority, &here);
        let state = watch::Sender::<State>::default();
        let dies = state.subscribe();
        spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(&authority).await.unwrap();
                let mut dies = dies.clone();
                let born = dies.borrow().deaths;
                spawn(async move {
                    select! {
                        biased;
                        _ = dies.wait_for(|now| now.is_dead || now.deaths > born) => {}
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                    }
                    // Both ends stay open, until the test ends.
                    let _ = dies.wait_for(|_| false).await;
                });
            }
        });
        Self { url, state }
    }

    /// No connection carries anything any more, and none is closed; new ones neither.
    fn dies(&self) {
        self.state.send_modify(|state| {
            state.deaths += 1;
            state.is_dead = true;
        });
    }

    /// For new connections: those that were open stay dead.
    fn heals(&self) {
        self.state.send_modify(|state| state.is_dead = false);
    }
}

async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let result = rocket::tokio::time::timeout(limit, work).await;
    result.unwrap_or_else(|_| panic!("{what} takes longer than {:?}", started.elapsed()))
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn nobody_waits_for_a_dead_network_longer_than_for_a_lease() {
        let leases = Leases::new(Backend::Postgres).await;
        let road = Road::to(&leases.databases.main).await;
        let manager = manager_on(&road.url).await.with_max_wait(Some(SECOND));
        manager.acquire("a").await.unwrap().release().await.unwrap();
        road.dies();
        let refused = within("acquire", 2 * SECOND, manager.acquire("a")).await;
        assert!(matches!(refused, Err(LockError::TimedOut { .. })));
        // 5 s for a session, 3 s for its answer.
        let refused = within("a try", 10 * SECOND, manager.try_acquire("b")).await;
        assert!(matches!(refused, Ok(None) | Err(LockError::Database(_))));
        assert!(
            within("the list", 10 * SECOND, manager.leases())
                .await
                .is_err()
        );
        let others = leases.another().await;
        others.acquire("b").await.unwrap().release().await.unwrap();

        road.heals();
        let started = Instant::now();
        eventually("it works again", async || {
            manager.acquire("a").await.is_ok()
        })
        .await;
        assert!(started.elapsed() < 10 * SECOND, "{:?}", started.elapsed());
        leases.everything_is_free().await;
    }

    #[rocket::async_test]
    async fn a_lease_is_given_up_on_a_dead_network() {
        let leases = Leases::new(Backend::Postgres).await;
        let road = Road::to(&leases.databases.main).await;
        let manager = manager_on(&road.url).await.with_lease_ttl(3 * SECOND);
        let released = manager.acquire("released").await.unwrap();
        let mut fenced = manager.acquire("fenced").await.unwrap();
        road.dies();
        // By now it is being renewed, in vain.
        rocket::tokio::time::sleep(SECOND * 3 / 2).await;
        within("the fence", 2 * SECOND, fenced.begin_fenced_release()).await;
        // Until it would have expired, and the last attempt with it.
        let _expires = within("release", 14 * SECOND, released.release()).await;
        drop(fenced);
        let other = leases.another().await;
        within("takeover", 4 * SECOND, other.acquire("released"))
            .await
            .unwrap();
        eventually("no gate is left", async || manager.keys() == 0).await;
    }

    /// Polling alone would take half a minute at least.
    #[rocket::async_test]
    async fn a_listener_whose_peer_vanished_listens_anew() {
        let leases = Leases::new(Backend::Postgres).await;
        let road = Road::to(&leases.databases.main).await;
        let waiter = manager_on(&road.url).await;
        let waiter = waiter
            .with_retry_interval(60 * SECOND)
            .with_max_wait(Some(120 * SECOND));
        let held = leases.manager.acquire("a").await.unwrap();
        let waiting = spawn(async move { waiter.acquire("a").await.map(drop) });
        eventually("it is wanted", async || leases.rows().await[0].wanted).await;
        // It looks once more after it has marked the row.
        rocket::tokio::time::sleep(SECOND).await;
        road.dies();
        road.heals();
        held.release().await.unwrap();
        within("the wait", 25 * SECOND, waiting)
            .await
            .unwrap()
            .unwrap();
    }

    /// It is gone, and it was ours: nothing was lost.
    #[rocket::async_test]
    async fn a_release_whose_answer_is_lost_is_a_release() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = Proxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url(&leases.databases.main)).await;
        let lease = manager.acquire("a").await.unwrap();
        // In the statement's arguments: once that is sent, it is obeyed.
        let token: &'static str = leases.rows().await[0].token.clone().leak();
        proxy.set(token, Break::After);
        lease.release().await.unwrap();
        assert!(proxy.has_sprung());
        leases.everything_is_free().await;
    }

    /// A free lease, and its release, are a round trip each.
    #[rocket::async_test]
    async fn a_lease_costs_two_statements() {
        let cluster = Cluster::start_with("log_statement = 'all'").await;
        let manager = manager_on(&cluster.create_database("main").await).await;
        manager.migrate().await.unwrap();
        let pair = async || manager.acquire("a").await.unwrap().release().await.unwrap();
        pair().await;
        let statements = || {
            let log = cluster.log();
            let entries = log.split("LOG:  ");
            let statements = entries
                .filter(|entry| entry.starts_with("execute ") || entry.starts_with("statement: "));
            // On a machine that stood still for a while, a silent session is replaced.
            let opening = ["PREPARE rocket_tx_proof", "pg_control_system"];
            statements
                .filter(|statement| !opening.iter().any(|text| statement.contains(text)))
                .count()
        };
        let before = statements();
        for _ in 0..5 {
            pair().await;
        }
        assert_eq!(statements() - before, 10, "{}", cluster.log());
    }
}
