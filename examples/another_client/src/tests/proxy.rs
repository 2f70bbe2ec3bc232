//! A proxy in front of a Postgres server that can lose the reply to a statement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use rocket::tokio;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::select;

pub struct Proxy {
    address: SocketAddr,
    settings: Arc<Mutex<Settings>>,
}

#[derive(Default)]
struct Settings {
    server: String,
    keeps_reply_to: Option<&'static str>,
}

impl Proxy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Arc::new(Mutex::<Settings>::default());
        let shared = Arc::clone(&settings);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = shared.lock().unwrap().server.clone();
                let server = TcpStream::connect(server).await.unwrap();
                tokio::spawn(forward(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, settings }
    }

    /// Returns the URL of the proxy, which forwards to the server of `url`.
    pub fn in_front_of(&self, url: &str) -> String {
        let url = rocket::http::uri::Absolute::parse(url).unwrap();
        let authority = url.authority().unwrap();
        let server = format!("{}:{}", authority.host(), authority.port().unwrap_or(5432));
        self.settings.lock().unwrap().server = server;
        let user = authority.user_info().unwrap_or("postgres");
        format!("postgres://{user}@{}{}", self.address, url.path())
    }

    /// From now on, statements that contain `text` reach the server, but the connection ends
    /// instead of the reply.
    pub fn keep_the_reply_to(&self, text: &'static str) {
        self.settings.lock().unwrap().keeps_reply_to = Some(text);
    }

    pub fn keep_nothing(&self) {
        self.settings.lock().unwrap().keeps_reply_to = None;
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, settings: Arc<Mutex<Settings>>) {
    let (mut sent, mut replied) = ([0; 8192], [0; 8192]);
    loop {
        select! {
            read = client.read(&mut sent) => {
                let bytes = &sent[..read.unwrap_or(0)];
                if bytes.is_empty() || server.write_all(bytes).await.is_err() {
                    return;
                }
                let kept = settings.lock().unwrap().keeps_reply_to;
                if kept.is_some_and(|text| String::from_utf8_lossy(bytes).contains(text)) {
                    let _reply = server.read(&mut replied).await;
                    return;
                }
            }
            read = server.read(&mut replied) => {
                let bytes = &replied[..read.unwrap_or(0)];
                if bytes.is_empty() || client.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}
