//! Clients that read a response slowly or not at all, while its body holds a `Read` connection.

mod addresses;
mod bodies;

use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rocket::futures::StreamExt;
use rocket::response::stream::TextStream;
use rocket::response::{self, Responder};
use rocket::tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncWriteExt, ReadBuf};
use rocket::tokio::net::{TcpSocket, TcpStream};
use rocket::tokio::sync::Semaphore;
use rocket::tokio::time::{sleep, timeout};
use rocket::{Build, Request, Response, Rocket, State, get, post, routes, tokio};
use rocket_tx::db::UrlConnection;
use rocket_tx::{Error, Read, Settlement, Tx, with_backend};

use crate::support::launch::logged_here;
use crate::support::stage::note;
use crate::support::{Backend, Databases, Http, In, Main, Stage, eventually};

/// The number of read connections that a database has in these tests.
const READERS: usize = 4;

/// The setting `read_idle_timeout`: short, but longer than a busy machine pauses.
const LIMIT: Duration = Duration::from_secs(1);

const CHUNK: usize = 64 * 1024;
/// More data than the system buffers for a client that does not read.
const CHUNKS: usize = 512;

/// How a complete response ends.
const END: &str = "the end";

/// Returns the only row of `notes` many times. The statement stays open until the last row.
const ROWS: &str = "\
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    SELECT text FROM notes CROSS JOIN n LIMIT ";

/// Its reference count shows how many bodies exist.
type Bodies = Arc<()>;

#[get("/stream/<chunks>")]
fn stream(mut read: Read<Main>, chunks: usize, bodies: &State<Bodies>) -> TextStream![String] {
    let body = Arc::clone(bodies);
    TextStream! {
        let _body = body;
        let rows = sqlx::AssertSqlSafe(format!("{ROWS}{chunks}"));
        match &mut *read {
            UrlConnection::Sqlite(db) => {
                let mut rows = sqlx::query_scalar(rows).fetch(&mut **db);
                while let Some(Ok(text)) = rows.next().await {
                    yield text;
                }
            }
            UrlConnection::Postgres(db) => {
                let mut rows = sqlx::query_scalar(rows).fetch(&mut **db);
                while let Some(Ok(text)) = rows.next().await {
                    yield text;
                }
            }
        }
        yield END.to_owned();
    }
}

/// A body of known size that holds a `Read`.
struct Sized {
    _body: Arc<()>,
    read: Read<Main>,
    text: Cursor<Vec<u8>>,
}

impl AsyncRead for Sized {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let _: &UrlConnection = &self.read;
        Pin::new(&mut self.text).poll_read(context, buffer)
    }
}

impl AsyncSeek for Sized {
    fn start_seek(mut self: Pin<&mut Self>, to: std::io::SeekFrom) -> std::io::Result<()> {
        Pin::new(&mut self.text).start_seek(to)
    }

    fn poll_complete(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<u64>> {
        Pin::new(&mut self.text).poll_complete(context)
    }
}

impl<'r> Responder<'r, 'static> for Sized {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        Response::build().sized_body(None, self).ok()
    }
}

#[get("/sized/<chunks>")]
fn sized(read: Read<Main>, chunks: usize, bodies: &State<Bodies>) -> Sized {
    let mut text = vec![b'x'; chunks * CHUNK];
    text.extend_from_slice(END.as_bytes());
    Sized {
        _body: Arc::clone(bodies),
        read,
        text: Cursor::new(text),
    }
}

/// A body that uses its `Read` only at the beginning.
#[get("/early/<chunks>")]
fn early(mut read: Read<Main>, chunks: usize) -> TextStream![String] {
    TextStream! {
        yield format!("{:?}", rows(&mut read).await);
        drop(read);
        for _ in 0..chunks {
            yield "x".repeat(CHUNK);
        }
        yield END.to_owned();
    }
}

/// A body that fails or panics after its beginning.
struct Broken {
    _read: Read<Main>,
    panics: bool,
    has_begun: bool,
}

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.has_begun {
            assert!(!self.panics, "as requested");
            return Poll::Ready(Err(std::io::Error::other("as requested")));
        }
        self.has_begun = true;
        buffer.put_slice(b"the beginning");
        Poll::Ready(Ok(()))
    }
}

impl<'r> Responder<'r, 'static> for Broken {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        Response::build().streamed_body(self).ok()
    }
}

#[get("/broken/<how>")]
fn broken(read: Read<Main>, how: &str) -> Broken {
    Broken {
        _read: read,
        panics: how == "panics",
        has_begun: false,
    }
}

/// A task of the request holds the `Read` for long. The body does not use it.
#[get("/beside/<chunks>")]
fn beside(mut read: Read<Main>, chunks: usize, go_on: &State<Arc<Semaphore>>) -> String {
    let go_on = Arc::clone(go_on);
    tokio::spawn(async move {
        assert!(rows(&mut read).await.is_ok());
        let _permit = go_on.acquire().await;
        drop(read);
    });
    "x".repeat(chunks * CHUNK) + END
}

/// A body that waits for the test, not for its client.
#[get("/waiting")]
fn waiting<'r>(
    read: Read<Main>,
    go_on: &'r State<Arc<Semaphore>>,
) -> TextStream![&'static str + 'r] {
    TextStream! {
        yield "the beginning, ";
        let _permit = go_on.acquire().await;
        let _held = &read;
        yield END;
    }
}

async fn rows(connection: &mut UrlConnection) -> sqlx::Result<i64> {
    with_backend!(connection, |db| sqlx::query_scalar(
        "SELECT count(*) FROM notes"
    )
    .fetch_one(db)
    .await)
}

#[get("/count")]
async fn count(mut read: Read<Main>) -> Result<String, Error> {
    Ok(rows(&mut read).await?.to_string())
}

#[post("/go-on")]
fn go_on(waiting: &State<Arc<Semaphore>>) {
    waiting.add_permits(1);
}

#[post("/notes/<text>")]
async fn write(text: &str, mut tx: Tx<Main>) -> Result<(), Error> {
    note(&mut tx, text).await?;
    Ok(())
}

struct Scene {
    stage: Stage,
    bodies: Bodies,
}

fn service(rocket: Rocket<Build>, bodies: &Bodies) -> Rocket<Build> {
    rocket
        .manage(Arc::clone(bodies))
        .manage(Arc::new(Semaphore::new(0)))
        .mount(
            "/",
            routes![
                stream, sized, early, broken, beside, waiting, go_on, count, write
            ],
        )
        .attach(Settlement::new())
}

async fn scene_with(backend: Backend, read_idle_timeout: &str) -> Scene {
    let databases = Databases::with_tables(backend).await;
    let settings = [
        ("read_idle_timeout", read_idle_timeout),
        ("databases.main.connect_timeout", "\"300ms\""),
    ];
    let bodies = Bodies::default();
    let stage = Stage::on(databases, &settings, |rocket| service(rocket, &bodies)).await;
    Scene::of(backend, stage, bodies).await
}

async fn scene(backend: Backend) -> Scene {
    scene_with(backend, "1").await
}

impl Scene {
    async fn of(backend: Backend, stage: Stage, bodies: Bodies) -> Self {
        let row = match backend {
            Backend::Sqlite => "INSERT INTO notes VALUES (hex(zeroblob(32768)))",
            Backend::Postgres => "INSERT INTO notes VALUES (repeat('x', 65536))",
        };
        stage.databases.execute(In::Main, row).await;
        Self { stage, bodies }
    }

    /// Makes all read connections wait for clients that do not read.
    async fn stall(&self, path: &str) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..READERS {
            let request = format!("GET {path}/{CHUNKS}");
            clients.push(Client::requesting(&self.stage.http, &request).await);
        }
        let response = self.stage.send("GET /count").await;
        assert_eq!(
            response.summary(),
            (503, None),
            "all read connections are in use: {response:?}"
        );
        clients
    }

    /// Waits until all bodies are dropped and other requests can read.
    async fn is_freed(&self) {
        eventually("the bodies are dropped", async || {
            // One reference belongs to the service, one to the test.
            Arc::strong_count(&self.bodies) == 2
        })
        .await;
        eventually("other requests can read", async || {
            self.stage.send("GET /count").await.summary() == (200, None)
        })
        .await;
    }
}

/// A client that reads when the test says so.
struct Client(TcpStream);

impl Client {
    async fn of(http: &Http) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // A small buffer: the rest of the body stays with the service.
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let address = http.base.trim_start_matches("http://").parse().unwrap();
        Self(socket.connect(address).await.unwrap())
    }

    /// Connects, sends a request, and reads the beginning of the response.
    async fn requesting(http: &Http, request: &str) -> Self {
        let mut client = Self::of(http).await;
        client.request(request).await;
        client
    }

    /// Sends a request, and reads the beginning of the response.
    async fn request(&mut self, request: &str) {
        self.send(request).await;
        let mut status = [0; 12];
        self.0.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200", "{request}");
    }

    async fn send(&mut self, request: &str) {
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.write_all(head.as_bytes()).await.unwrap();
    }

    /// Reads until the data ends with `end` or the connection is closed.
    async fn rest(&mut self, end: &str) -> String {
        let mut rest = Vec::new();
        let mut part = vec![0; 16 * 1024];
        while !rest.ends_with(end.as_bytes()) {
            let read = timeout(Duration::from_secs(60), self.0.read(&mut part)).await;
            match read.expect("data or the end of the connection arrives") {
                Ok(0) | Err(_) => break,
                Ok(length) => rest.extend_from_slice(&part[..length]),
            }
        }
        String::from_utf8(rest).unwrap()
    }
}

/// How a complete chunked response ends.
const LAST_CHUNK: &str = "\r\n0\r\n\r\n";
