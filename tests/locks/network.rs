//! A dead network: it carries no more packets, and closes no connection.

use std::time::{Duration, Instant};

use rocket::tokio::io::copy_bidirectional;
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::sync::watch;
use rocket::tokio::{select, spawn};
use rocket_tx_aggregates::lock::{Hold, LockError};

use super::{Leases, manager_on};
use crate::support::{Backend, Break, Cluster, Proxy, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// How often the connections were silenced, and whether they are silent now.
#[derive(Clone, Copy, Default)]
struct State {
    silenced: u32,
    is_silent: bool,
}

/// A proxy in front of the server, whose connections can all go silent for ever.
struct SilentProxy {
    url: String,
    state: watch::Sender<State>,
}

impl SilentProxy {
    async fn to(url: &str) -> Self {
        let authority = url.split(['@', '/']).nth(3).unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let url = url.replace(&authority, &here);
        let state = watch::Sender::<State>::default();
        let changes = state.subscribe();
        spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(&authority).await.unwrap();
                let mut changes = changes.clone();
                let silenced_before = changes.borrow().silenced;
                spawn(async move {
                    select! {
                        biased;
                        _ = changes.wait_for(|now| now.is_silent || now.silenced > silenced_before) => {}
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                    }
                    // Both ends stay open until the test ends.
                    let _ = changes.wait_for(|_| false).await;
                });
            }
        });
        Self { url, state }
    }

    /// From now on no connection carries data, and none is closed. This includes new connections.
    fn silence(&self) {
        self.state.send_modify(|state| {
            state.silenced += 1;
            state.is_silent = true;
        });
    }

    /// New connections work again. Connections that were open stay silent.
    fn heal(&self) {
        self.state.send_modify(|state| state.is_silent = false);
    }
}

async fn within<T>(name: &str, limit: Duration, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let result = rocket::tokio::time::timeout(limit, work).await;
    result.unwrap_or_else(|_| panic!("{name} takes longer than {:?}", started.elapsed()))
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn on_a_dead_network_every_operation_ends_within_its_bound() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = SilentProxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url).await.with_max_wait(Some(SECOND));
        manager.acquire("a").await.unwrap().release().await.unwrap();
        proxy.silence();
        let refused = within("acquire", 2 * SECOND, manager.acquire("a")).await;
        assert!(matches!(refused, Err(LockError::TimedOut { .. })));
        // 5 s for a session, 3 s for its reply.
        let refused = within("a try", 10 * SECOND, manager.try_acquire("b")).await;
        assert!(matches!(refused, Ok(None) | Err(LockError::Database(_))));
        assert!(
            within("the list", 10 * SECOND, manager.leases())
                .await
                .is_err()
        );
        let others = leases.another().await;
        others.acquire("b").await.unwrap().release().await.unwrap();

        proxy.heal();
        let started = Instant::now();
        eventually("a lease is acquired again", async || {
            manager.acquire("a").await.is_ok()
        })
        .await;
        assert!(started.elapsed() < 10 * SECOND, "{:?}", started.elapsed());
        leases.everything_is_free().await;
    }

    #[rocket::async_test]
    async fn on_a_dead_network_a_lease_is_released_or_expires_in_time() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = SilentProxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url).await.with_lease_ttl(3 * SECOND);
        let released = manager.acquire("released").await.unwrap();
        let mut fenced = manager.acquire("fenced").await.unwrap();
        proxy.silence();
        // After this time the holder tries to renew the leases, in vain.
        rocket::tokio::time::sleep(SECOND * 3 / 2).await;
        within("the fence", 2 * SECOND, fenced.begin_fenced_release()).await;
        // The release is tried until the lease would have expired.
        let _expires = within("release", 14 * SECOND, released.release()).await;
        drop(fenced);
        let other = leases.another().await;
        within("takeover", 4 * SECOND, other.acquire("released"))
            .await
            .unwrap();
        eventually("no gate is left", async || manager.keys() == 0).await;
    }

    /// Polling alone would take at least half a minute.
    #[rocket::async_test]
    async fn a_listener_whose_connection_died_reconnects() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = SilentProxy::to(&leases.databases.main).await;
        let waiter = manager_on(&proxy.url).await;
        let waiter = waiter
            .with_retry_interval(60 * SECOND)
            .with_max_wait(Some(120 * SECOND));
        let held = leases.manager.acquire("a").await.unwrap();
        let waiting = spawn(async move { waiter.acquire("a").await.map(drop) });
        eventually("the lease is wanted", async || {
            leases.rows().await[0].wanted
        })
        .await;
        // The waiter polls once more after it has marked the row.
        rocket::tokio::time::sleep(SECOND).await;
        proxy.silence();
        proxy.heal();
        held.release().await.unwrap();
        within("the wait", 25 * SECOND, waiting)
            .await
            .unwrap()
            .unwrap();
    }

    /// The retry finds no row. The row was ours, so the release succeeded.
    #[rocket::async_test]
    async fn a_release_whose_reply_is_lost_succeeds() {
        let leases = Leases::new(Backend::Postgres).await;
        let proxy = Proxy::to(&leases.databases.main).await;
        let manager = manager_on(&proxy.url(&leases.databases.main)).await;
        let lease = manager.acquire("a").await.unwrap();
        // The proxy breaks the connection when the token appears in the arguments of a statement.
        // The server still executes that statement.
        let token: &'static str = leases.rows().await[0].token.clone().leak();
        proxy.set(token, Break::After);
        lease.release().await.unwrap();
        assert!(proxy.has_sprung());
        leases.everything_is_free().await;
    }

    /// Acquiring a free lease takes one round trip, and so does its release.
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
            // If the machine was paused, an idle session is replaced. The statements that open the
            // new one are not counted, nor is the LISTEN of the one connection that listens.
            let opening = ["PREPARE rocket_tx_proof", "pg_control_system", "LISTEN"];
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
