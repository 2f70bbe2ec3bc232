//! A proxy in front of Postgres. It breaks the network, or a connection at a chosen statement.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::sync::watch;
use rocket::tokio::{select, spawn};

/// The fault of a trap: how the next connection that sends the trap's statement is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The connection is closed. The server never receives the statement.
    Before,
    /// The server executes the statement. Its reply is discarded and the connection is closed.
    After,
    /// The statement is not forwarded before [`Proxy::deliver`], and the connection stays open.
    Stall,
    /// The server executes the statement. Its reply is not forwarded, and the connection stays open.
    StallReply,
    /// The server executes the statement. Its reply is not forwarded before [`Proxy::deliver`].
    HoldReply,
}

/// How new connections are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newcomers {
    /// They are forwarded to the server.
    Served,
    /// They are accepted, but never get a reply.
    Ignored,
    /// They are refused: the proxy does not listen on its port.
    Refused,
}

type Trap = Arc<Mutex<TrapState>>;

#[derive(Default)]
struct TrapState {
    armed: Option<(String, Break)>,
    /// The statement was forwarded, and its reply, which is withheld, has not arrived yet.
    is_executing: bool,
}

pub struct Proxy {
    pub port: u16,
    trap: Trap,
    network: Arc<Network>,
    /// The server that connections are forwarded to, as `host:port`.
    server: Arc<Mutex<String>>,
}

struct Network {
    newcomers: watch::Sender<Newcomers>,
    /// The value of `newcomers` that is in effect.
    applied: watch::Sender<Newcomers>,
    /// Connections are numbered. Those up to this number forward nothing.
    frozen: watch::Sender<u64>,
    /// Connections up to this number are closed.
    cut: watch::Sender<u64>,
    /// Connections up to this number are reset: data in transit is discarded.
    reset: watch::Sender<u64>,
    /// Changes when withheld statements and replies are forwarded.
    delivered: watch::Sender<()>,
    /// The number of the last connection.
    last: AtomicU64,
    round_trips: AtomicU64,
}

impl Proxy {
    /// Starts a proxy for the server of `url`.
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
            delivered: watch::Sender::new(()),
            last: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
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

    /// Forwards new connections to the server of `url` from now on.
    pub fn lead_to(&self, url: &str) {
        authority(url).clone_into(&mut self.server.lock());
    }

    /// Stops forwarding on the open connections, without closing them. New connections are not
    /// affected.
    pub fn freeze(&self) {
        self.network.frozen.send_replace(self.connections());
    }

    /// Resumes forwarding on frozen connections.
    pub fn thaw(&self) {
        self.network.frozen.send_replace(0);
    }

    /// Closes the open connections at both ends.
    pub fn cut(&self) {
        self.network.cut.send_replace(self.connections());
    }

    /// Resets the open connections at both ends.
    pub fn reset(&self) {
        self.network.reset.send_replace(self.connections());
    }

    /// Sets how new connections are treated from now on.
    pub async fn newcomers(&self, newcomers: Newcomers) {
        self.network.newcomers.send_replace(newcomers);
        let mut applied = self.network.applied.subscribe();
        applied.wait_for(|now| *now == newcomers).await.unwrap();
    }

    /// Returns how many connections were served or ignored so far.
    pub fn connections(&self) -> u64 {
        self.network.last.load(Ordering::SeqCst)
    }

    /// Returns how many round trips the clients have begun so far. What a client sends before the
    /// server replies counts as one.
    pub fn round_trips(&self) -> u64 {
        self.network.round_trips.load(Ordering::SeqCst)
    }

    /// Returns the URL of the same database through the proxy.
    pub fn url(&self, url: &str) -> String {
        url.replace(authority(url), &format!("127.0.0.1:{}", self.port))
    }

    /// Sets a trap. It springs once, on the next message from a client with a statement that
    /// begins with `start`, or with this argument.
    pub fn set(&self, start: &str, kind: Break) {
        *self.trap.lock() = TrapState {
            armed: Some((start.to_owned(), kind)),
            is_executing: false,
        };
    }

    /// Returns `true` once the trap has sprung. With [`Break::StallReply`] and [`Break::HoldReply`],
    /// the server has executed the statement then.
    pub fn has_sprung(&self) -> bool {
        let trap = self.trap.lock();
        trap.armed.is_none() && !trap.is_executing
    }

    /// Removes the trap. Returns `true` if it had not sprung.
    pub fn unset(&self) -> bool {
        let trap = std::mem::take(&mut *self.trap.lock());
        trap.armed.is_some() || trap.is_executing
    }

    /// Forwards the statements that [`Break::Stall`] has withheld, also if the client has ended
    /// meanwhile, and the replies that [`Break::HoldReply`] has withheld.
    pub fn deliver(&self) {
        self.network.delivered.send_replace(());
    }
}

/// Listens on a port below the range from which Linux assigns ports, so that no outgoing connection
/// takes the port while newcomers are refused.
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
    let (start, kind) = trap.armed.as_ref()?;
    let kind = *kind;
    has_statement(message, start.as_bytes()).then(|| {
        trap.armed = None;
        trap.is_executing = matches!(kind, Break::StallReply | Break::HoldReply);
        kind
    })
}

/// Returns whether a statement in `message` begins with `start`, or an argument is `start`. The text is not searched anywhere
/// else: the BEGIN of the library mentions COMMIT in the text of its seal.
fn has_statement(message: &[u8], start: &[u8]) -> bool {
    let places = message.windows(start.len()).enumerate();
    let mut places = places.filter(|(_, part)| *part == start);
    places.any(|(place, _)| {
        let before = &message[..place];
        // A simple query begins with `Q` and its length, and Parse has a name that ends in 0.
        let begins_message = before.len() >= 5 && before[before.len() - 5] == b'Q';
        // An argument has its length before it.
        let length = u32::try_from(start.len()).unwrap().to_be_bytes();
        begins_message
            || before.ends_with(&length)
            || matches!(before.trim_ascii_end().last(), Some(b';' | 0))
    })
}

#[test]
fn a_statement_is_found_where_it_begins() {
    let found = |message: &[u8]| has_statement(message, b"COMMIT");
    assert!(found(b"Q\0\0\0\x0bCOMMIT\0"));
    assert!(found(b"Q\0\0\0\x14CLOSE it; COMMIT; RESET ALL\0"));
    assert!(found(b"P\0\0\0\x10name\0COMMIT\0\0\0"));
    assert!(found(b"B\0\0\0\x20\0name\0\0\0\0\x01\0\0\0\x06COMMIT\0\0"));
    assert!(!found(b"Q\0\0\0\x20SELECT 'must not send COMMIT'\0"));
    assert!(!found(b"Q\0\0\0\x10BEGIN READ WRITE\0"));
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
                // If the server is down, the client's connection is closed.
                let address = server.lock().clone();
                let Ok(mut server) = TcpStream::connect(&address).await else {
                    continue;
                };
                let mut client = client;
                let (trap, frozen) = (Arc::clone(&trap), network.frozen.subscribe());
                let delivered = network.delivered.subscribe();
                let (mut cut, mut reset) = (network.cut.subscribe(), network.reset.subscribe());
                let network = Arc::clone(&network);
                spawn(async move {
                    let count = || {
                        network.round_trips.fetch_add(1, Ordering::SeqCst);
                    };
                    let is_reset = select! {
                        _ = relay(&mut client, &mut server, trap, frozen, delivered, number, count) => false,
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
    mut delivered: watch::Receiver<()>,
    number: u64,
    count: impl Fn(),
) -> io::Result<()> {
    let mut from_client = vec![0; 64 * 1024];
    let mut from_server = vec![0; 64 * 1024];
    let mut is_sending = false;
    loop {
        let thawed = frozen.wait_for(|last| *last < number).await.map(drop);
        if thawed.is_err() {
            // The test has dropped the proxy.
            return Ok(());
        }
        select! {
            biased;
            _ = frozen.changed() => {}
            length = client.read(&mut from_client) => {
                let message = &from_client[..length?];
                if message.is_empty() {
                    return Ok(());
                }
                delivered.mark_unchanged();
                // A long message arrives in several parts.
                if !std::mem::replace(&mut is_sending, true) {
                    count();
                }
                match sprung(&trap, message) {
                    None => server.write_all(message).await?,
                    Some(Break::Before) => return Ok(()),
                    Some(Break::After) => {
                        server.write_all(message).await?;
                        // Postgres replies to a simple query after executing all of it.
                        return server.read(&mut from_server).await.map(drop);
                    }
                    Some(Break::Stall) => {
                        if delivered.changed().await.is_err() {
                            return Ok(());
                        }
                        server.write_all(message).await?;
                    }
                    Some(kind @ (Break::StallReply | Break::HoldReply)) => {
                        server.write_all(message).await?;
                        let length = server.read(&mut from_server).await?;
                        if length > 0 {
                            trap.lock().is_executing = false;
                        }
                        if kind == Break::StallReply {
                            return pending().await;
                        }
                        if delivered.changed().await.is_err() {
                            return Ok(());
                        }
                        client.write_all(&from_server[..length]).await?;
                    }
                }
            }
            length = server.read(&mut from_server) => {
                let message = &from_server[..length?];
                if message.is_empty() {
                    return Ok(());
                }
                is_sending = false;
                client.write_all(message).await?;
            }
        }
    }
}
