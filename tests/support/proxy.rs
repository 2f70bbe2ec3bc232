//! A proxy in front of Postgres that breaks the connection at a chosen statement.

use std::future::pending;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpStream};
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

type Trap = Arc<Mutex<Option<(&'static str, Break)>>>;

pub struct Proxy {
    pub port: u16,
    trap: Trap,
}

impl Proxy {
    /// Leads to the server of `url`.
    pub async fn to(url: &str) -> Self {
        let server = authority(url).to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let trap = Trap::default();
        let shared = Arc::clone(&trap);
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                let trap = Arc::clone(&shared);
                spawn(relay(client, server, trap));
            }
        });
        Self { port, trap }
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

async fn relay(mut client: TcpStream, mut server: TcpStream, trap: Trap) -> io::Result<()> {
    let mut asked = vec![0; 64 * 1024];
    let mut answered = vec![0; 64 * 1024];
    loop {
        select! {
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
