//! A proxy in front of Postgres that breaks the connection at a chosen statement, or the network.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::sync::watch;
use rocket::tokio::{select, spawn};

/// What to do with the next connection that sends the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Cut it: the server never sees the statement.
    Before,
    /// Let the server do the statement, swallow its answer, and cut.
    After,
    /// Keep the statement, and keep the connection open.
    Stall,
}

/// What becomes of who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newcomers {
    /// They are led to the server.
    Served,
    /// The connection stands, and nothing is ever answered on it.
    Ignored,
    /// Nobody listens at the port.
    Refused,
}

type Trap = Arc<Mutex<Option<(&'static str, Break)>>>;

pub struct Proxy {
    pub port: u16,
    trap: Trap,
    network: Arc<Network>,
    /// Where connections lead, as `host:port`.
    server: Arc<Mutex<String>>,
}

struct Network {
    newcomers: watch::Sender<Newcomers>,
    /// What has become of `newcomers` last.
    applied: watch::Sender<Newcomers>,
    /// Connections are numbered; those up to this number neither take nor give anything.
    frozen: watch::Sender<u64>,
    /// Those up to this number are over.
    cut: watch::Sender<u64>,
    /// Those up to this number are over, and what was on its way is thrown away.
    reset: watch::Sender<u64>,
    last: AtomicU64,
}

impl Proxy {
    /// Leads to the server of `url`.
    pub async fn to(url: &str) -> Self {
        let server = Arc::new(Mutex::new(authority(url).to_owned()));
        let listener = listen().await;
        let port = listener.local_addr().unwrap().port();
        let trap = Trap::default();
        let network = Arc::new(Network {
            newcomers: watch::Sender::new(Newcomers::Served),
            applied: watch::Sender::new(Newcomers::Served),
            frozen: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            reset: watch::Sender::new(0),
            last: AtomicU64::new(0),
        });
        spawn(serve(
            listener,
            Arc::clone(&server),
            Arc::clone(&trap),
            Arc::clone(&network),
        ));
        Self {
            port,
            trap,
            network,
            server,
        }
    }

    /// Those who connect from now on come to the server of `url`.
    pub fn lead_to(&self, url: &str) {
        authority(url).clone_into(&mut self.server.lock());
    }

    /// From now on the connections that stand are silent. Nobody is told: they are not closed. New
    /// ones are not concerned.
    pub fn freeze(&self) {
        self.network.frozen.send_replace(self.connections());
    }

    /// Silent connections go on where they were.
    pub fn thaw(&self) {
        self.network.frozen.send_replace(0);
    }

    /// Closes the connections that stand, at both ends.
    pub fn cut(&self) {
        self.network.cut.send_replace(self.connections());
    }

    /// Resets the connections that stand, at both ends.
    pub fn reset(&self) {
        self.network.reset.send_replace(self.connections());
    }

    /// What becomes of those who connect from now on.
    pub async fn newcomers(&self, newcomers: Newcomers) {
        self.network.newcomers.send_replace(newcomers);
        let mut applied = self.network.applied.subscribe();
        applied.wait_for(|now| *now == newcomers).await.unwrap();
    }

    /// How many connections were served or ignored so far.
    pub fn connections(&self) -> u64 {
        self.network.last.load(Ordering::SeqCst)
    }

    /// The same database, by way of the proxy.
    pub fn url(&self, url: &str) -> String {
        url.replace(authority(url), &format!("127.0.0.1:{}", self.port))
    }

    /// Springs once, on the next message that holds `word`.
    pub fn set(&self, word: &'static str, kind: Break) {
        *self.trap.lock() = Some((word, kind));
    }

    pub fn has_sprung(&self) -> bool {
        self.trap.lock().is_none()
    }

    /// Takes the trap away. `true`: it had not sprung.
    pub fn unset(&self) -> bool {
        self.trap.lock().take().is_some()
    }
}

/// Below the ports that Linux hands out by itself: no outgoing connection takes this one while
/// newcomers are refused.
async fn listen() -> TcpListener {
    for _ in 0..100 {
        let port = fastrand::u16(20_000..32_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener;
        }
    }
    panic!("no free port was found for the proxy");
}

/// `host:port`
fn authority(url: &str) -> &str {
    let rest = url.split('@').nth(1).unwrap();
    rest.split('/').next().unwrap()
}

fn sprung(trap: &Trap, message: &[u8]) -> Option<Break> {
    let mut trap = trap.lock();
    let (word, kind) = (*trap)?;
    let found = message
        .windows(word.len())
        .any(|part| part == word.as_bytes());
    found.then(|| {
        *trap = None;
        kind
    })
}

async fn serve(
    listener: TcpListener,
    server: Arc<Mutex<String>>,
    trap: Trap,
    network: Arc<Network>,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let mut newcomers = network.newcomers.subscribe();
    loop {
        let now = *newcomers.borrow_and_update();
        if now == Newcomers::Refused {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.unwrap());
        }
        network.applied.send_replace(now);
        let Some(listening) = &listener else {
            if newcomers.changed().await.is_err() {
                return;
            }
            continue;
        };
        let client = select! {
            biased;
            _ = newcomers.changed() => continue,
            client = listening.accept() => client.unwrap().0,
        };
        let number = network.last.fetch_add(1, Ordering::SeqCst) + 1;
        match now {
            Newcomers::Served => {
                // The server itself may be down: then the client is cut off.
                let address = server.lock().clone();
                let Ok(mut server) = TcpStream::connect(&address).await else {
                    continue;
                };
                let mut client = client;
                let (trap, frozen) = (Arc::clone(&trap), network.frozen.subscribe());
                let (mut cut, mut reset) = (network.cut.subscribe(), network.reset.subscribe());
                spawn(async move {
                    let is_reset = select! {
                        _ = relay(&mut client, &mut server, trap, frozen, number) => false,
                        _ = cut.wait_for(|last| *last >= number) => false,
                        _ = reset.wait_for(|last| *last >= number) => true,
                    };
                    if is_reset {
                        client.set_zero_linger().unwrap();
                        server.set_zero_linger().unwrap();
                    }
                });
            }
            Newcomers::Ignored | Newcomers::Refused => {
                let (mut cut, mut reset) = (network.cut.subscribe(), network.reset.subscribe());
                spawn(async move {
                    let _client = client;
                    select! {
                        _ = cut.wait_for(|last| *last >= number) => {}
                        _ = reset.wait_for(|last| *last >= number) => {}
                    }
                });
            }
        }
    }
}

async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    trap: Trap,
    mut frozen: watch::Receiver<u64>,
    number: u64,
) -> io::Result<()> {
    let mut asked = vec![0; 64 * 1024];
    let mut answered = vec![0; 64 * 1024];
    loop {
        let thawed = frozen.wait_for(|last| *last < number).await.map(drop);
        if thawed.is_err() {
            // The proxy is gone, and the test with it.
            return Ok(());
        }
        select! {
            biased;
            _ = frozen.changed() => {}
            length = client.read(&mut asked) => {
                let message = &asked[..length?];
                if message.is_empty() {
                    return Ok(());
                }
                match sprung(&trap, message) {
                    None => server.write_all(message).await?,
                    Some(Break::Before) => return Ok(()),
                    Some(Break::After) => {
                        server.write_all(message).await?;
                        // Postgres answers a simple query when all of it is done.
                        return server.read(&mut answered).await.map(drop);
                    }
                    Some(Break::Stall) => pending().await,
                }
            }
            length = server.read(&mut answered) => {
                let message = &answered[..length?];
                if message.is_empty() {
                    return Ok(());
                }
                client.write_all(message).await?;
            }
        }
    }
}
