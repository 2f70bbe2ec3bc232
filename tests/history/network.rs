//! Random faults of the network and of the database server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use rocket::tokio::time::sleep;

use super::places::SETTLE;
use crate::support::{Break, Cluster, Databases, In, Newcomers, Proxy};

/// Where a database is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In an SQLite file, which has no network.
    File,
    /// On the Postgres server with this number, counted from 0.
    Server(usize),
}

/// The servers of two databases, and a proxy in front of each database on a server.
pub struct Network {
    servers: Vec<Cluster>,
    links: Vec<Link>,
}

struct Link {
    database: In,
    /// The number of the server.
    server: usize,
    proxy: Proxy,
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
    /// All processes of the server are stopped for a while. Connections stay open.
    Freeze,
}

impl Disturbance {
    pub const ALL: [Self; 14] = [
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
        Self::Freeze,
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
    /// Starts the servers, which allow prepared transactions, and creates the databases.
    pub async fn new(main: Location, audit: Location) -> (Self, Databases) {
        let mut network = Self {
            servers: Vec::new(),
            links: Vec::new(),
        };
        let main = network.create(main, "main").await;
        let audit = network.create(audit, "audit").await;
        let locations = [(In::Main, main.clone()), (In::Audit, audit.clone())];
        let mut databases = Databases::at(main.map(|(_, url)| url), audit.map(|(_, url)| url));
        for (database, location) in locations {
            if let Some((server, _)) = location {
                network.links.push(Link {
                    database,
                    server,
                    proxy: databases.by_proxy(database).await,
                });
            }
        }
        (network, databases)
    }

    /// Creates a database on its server. Returns the number of the server and the URL.
    async fn create(&mut self, location: Location, name: &str) -> Option<(usize, String)> {
        let Location::Server(number) = location else {
            return None;
        };
        while self.servers.len() <= number {
            let settings = "max_prepared_transactions = 64\n";
            self.servers.push(Cluster::start_with(settings).await);
        }
        let url = self.servers[number].create_database(name).await;
        Some((number, url))
    }

    /// Lists the transactions that are still prepared on any server.
    pub async fn prepared(&self) -> Vec<String> {
        let sql = "SELECT 'prepared in ' || database || ': ' || gid FROM pg_prepared_xacts";
        self.texts(sql).await
    }

    /// Lists the sessions of any server that are in a transaction. A session of a killed process
    /// may be: the server first executes what the process has sent.
    pub async fn in_transactions(&self) -> Vec<String> {
        let sql = "SELECT concat_ws(' ', datname, pid, state, query) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND xact_start IS NOT NULL \
                   AND pid <> pg_backend_pid()";
        self.texts(sql).await
    }

    /// Returns the rows of a query on each server.
    async fn texts(&self, sql: &'static str) -> Vec<String> {
        let mut texts = Vec::new();
        for server in &self.servers {
            let mut admin = server.admin().await;
            let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut admin).await.unwrap();
            texts.extend(rows);
        }
        texts
    }

    /// Sets a trap in front of `database`: the next statement for its server that begins with
    /// `statement` is withheld, or, with [`Break::StallReply`], the reply to it. Waits up to a second for that,
    /// then calls `strike` with the server and the proxy. Returns `false` if no such statement was
    /// sent. All connections of the database are closed in the end, unless `strike` returns `true`.
    pub async fn strike_at(
        &mut self,
        database: In,
        statement: &str,
        how: Break,
        strike: impl AsyncFnOnce(&mut Cluster, &Proxy) -> bool,
    ) -> bool {
        let link = self.links.iter().find(|link| link.database == database);
        let link = link.expect("the database is on a server");
        let is_sent = springs(&link.proxy, statement, how).await;
        if !is_sent || !strike(&mut self.servers[link.server], &link.proxy).await {
            link.proxy.cut();
        }
        is_sent
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
    pub async fn disturb(&mut self, disturbance: Disturbance, rng: &mut Rng) -> bool {
        let time = Duration::from_millis(rng.u64(20..1_500));
        let at_all = rng.bool();
        let one = &self.links[rng.usize(..self.links.len())];
        let server = rng.usize(..self.servers.len());
        let chosen = |link: &&Link| match disturbance {
            Disturbance::Kill => link.server == server,
            _ => at_all || link.database == one.database,
        };
        let proxies: Vec<&Proxy> = self
            .links
            .iter()
            .filter(chosen)
            .map(|it| &it.proxy)
            .collect();
        let cut = || proxies.iter().for_each(|it| it.cut());
        let reset = || proxies.iter().for_each(|it| it.reset());
        let newcomers = async |newcomers| {
            for proxy in &proxies {
                proxy.newcomers(newcomers).await;
            }
        };
        match disturbance {
            Disturbance::Cut => cut(),
            Disturbance::Reset => reset(),
            Disturbance::Silent | Disturbance::SilentAndCut => {
                proxies.iter().for_each(|it| it.freeze());
                sleep(time).await;
                if disturbance == Disturbance::SilentAndCut {
                    cut();
                }
                proxies.iter().for_each(|it| it.thaw());
            }
            Disturbance::Refused | Disturbance::Ignored => {
                newcomers(match disturbance {
                    Disturbance::Refused => Newcomers::Refused,
                    _ => Newcomers::Ignored,
                })
                .await;
                cut();
                sleep(time).await;
                newcomers(Newcomers::Served).await;
                // Close the ignored connections, so that clients need not wait any longer.
                cut();
            }
            Disturbance::CommitLost | Disturbance::ReplyLost | Disturbance::CommitSilent => {
                let proxy = &one.proxy;
                let is_lost = lose_a_commit(proxy, disturbance).await;
                if disturbance == Disturbance::CommitSilent {
                    sleep(SETTLE + Duration::from_millis(300)).await;
                    proxy.cut();
                }
                return is_lost;
            }
            Disturbance::ReplyLostAndRefused | Disturbance::CommitLostAndRefused => {
                let proxy = &one.proxy;
                proxy.newcomers(Newcomers::Refused).await;
                let is_lost = lose_a_commit(proxy, disturbance).await;
                if is_lost {
                    sleep(SETTLE + Duration::from_millis(300)).await;
                }
                proxy.newcomers(Newcomers::Served).await;
                return is_lost;
            }
            Disturbance::Crash => {
                self.servers[server].crash().await;
                sleep(time).await;
                self.servers[server].restart().await;
            }
            Disturbance::Kill => {
                // The connections are reset first, so that no client sees the server end.
                reset();
                self.servers[server].kill().await;
                sleep(time).await;
                self.servers[server].restart().await;
            }
            Disturbance::Freeze => {
                self.servers[server].freeze();
                sleep(time).await;
                self.servers[server].thaw();
            }
        }
        true
    }
}

/// Waits up to a second for a COMMIT and breaks it. Returns `false` if no COMMIT was sent.
async fn lose_a_commit(proxy: &Proxy, disturbance: Disturbance) -> bool {
    match disturbance.lost_commit() {
        Some(how) => springs(proxy, "COMMIT", how).await,
        None => false,
    }
}

/// Sets a trap and waits up to a second for it to spring. Returns `false` if it did not.
async fn springs(proxy: &Proxy, statement: &str, how: Break) -> bool {
    proxy.set(statement, how);
    for _ in 0..100 {
        if proxy.has_sprung() {
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
    !proxy.unset()
}
