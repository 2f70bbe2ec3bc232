//! Clients that ask for a body which reads while it is sent, and take it slowly, or not at all.

use std::io::Cursor;
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
use rocket::{Build, Request, Response, Rocket, State, get, post, routes};
use rocket_tx::db::Connection;
use rocket_tx::{Error, Read, Settlement, Tx, with_backend};

use crate::support::launch::logged_here;
use crate::support::stage::note;
use crate::support::{Backend, Databases, Http, In, Main, Stage, eventually};

/// As many as a database has connections for reading here.
const READERS: usize = 4;

/// Of the clients' patience. Short, and longer than a busy machine stops for.
const LIMIT: Duration = Duration::from_secs(1);

const CHUNK: usize = 64 * 1024;
/// More than the system keeps for a client that does not read.
const CHUNKS: usize = 512;

/// How a complete response ends.
const END: &str = "the end";

/// The one row of `notes`, again and again: the statement stays open until the last.
const ROWS: &str = "\
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    SELECT text FROM notes CROSS JOIN n LIMIT ";

/// How many bodies there are.
type Bodies = Arc<()>;

#[get("/stream/<chunks>")]
fn stream(mut read: Read<Main>, chunks: usize, bodies: &State<Bodies>) -> TextStream![String] {
    let body = Arc::clone(bodies);
    TextStream! {
        let _body = body;
        let rows = sqlx::AssertSqlSafe(format!("{ROWS}{chunks}"));
        match &mut *read {
            Connection::Sqlite(db) => {
                let mut rows = sqlx::query_scalar(rows).fetch(&mut **db);
                while let Some(Ok(text)) = rows.next().await {
                    yield text;
                }
            }
            Connection::Postgres(db) => {
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
    _read: Read<Main>,
    text: Cursor<Vec<u8>>,
}

impl AsyncRead for Sized {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
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
        _read: read,
        text: Cursor::new(text),
    }
}

/// A body that needs its `Read` at the beginning alone.
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

/// Fails, or panics, in the middle.
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
            assert!(!self.panics, "as asked");
            return Poll::Ready(Err(std::io::Error::other("as asked")));
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

/// A body that waits for something else than its client.
#[get("/waiting")]
fn waiting<'r>(read: Read<Main>, go_on: &'r State<Semaphore>) -> TextStream![&'static str + 'r] {
    TextStream! {
        yield "the beginning, ";
        let _permit = go_on.acquire().await;
        let _held = &read;
        yield END;
    }
}

async fn rows(connection: &mut Connection) -> sqlx::Result<i64> {
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
fn go_on(waiting: &State<Semaphore>) {
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
        .manage(Semaphore::new(0))
        .mount(
            "/",
            routes![stream, sized, early, broken, waiting, go_on, count, write],
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
    let row = match backend {
        Backend::Sqlite => "INSERT INTO notes VALUES (hex(zeroblob(32768)))",
        Backend::Postgres => "INSERT INTO notes VALUES (repeat('x', 65536))",
    };
    stage.databases.execute(In::Main, row).await;
    Scene { stage, bodies }
}

async fn scene(backend: Backend) -> Scene {
    scene_with(backend, "1").await
}

impl Scene {
    /// All that may read wait for clients that do not.
    async fn stall(&self, path: &str) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..READERS {
            clients.push(Client::asks(&self.stage.http, &format!("GET {path}/{CHUNKS}")).await);
        }
        let answer = self.stage.send("GET /count").await;
        assert_eq!(answer.told(), (503, None), "all are taken: {answer:?}");
        clients
    }

    /// There is no body any more, and others read.
    async fn is_freed(&self) {
        eventually("the bodies are dropped", async || {
            // The service's own, and the test's.
            Arc::strong_count(&self.bodies) == 2
        })
        .await;
        eventually("others read", async || {
            self.stage.send("GET /count").await.told() == (200, None)
        })
        .await;
    }
}

/// A client that reads when the test says so.
struct Client(TcpStream);

impl Client {
    async fn of(http: &Http) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // What does not fit stays with the service.
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let address = http.base.trim_start_matches("http://").parse().unwrap();
        Self(socket.connect(address).await.unwrap())
    }

    /// Asks, and has the beginning of the response.
    async fn asks(http: &Http, what: &str) -> Self {
        let mut client = Self::of(http).await;
        client.ask(what).await;
        client
    }

    async fn ask(&mut self, what: &str) {
        self.send(what).await;
        let mut status = [0; 12];
        self.0.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200", "{what}");
    }

    async fn send(&mut self, what: &str) {
        let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads until `end` has come, or the connection has ended.
    async fn rest(&mut self, end: &str) -> String {
        let mut rest = Vec::new();
        let mut part = vec![0; 16 * 1024];
        while !rest.ends_with(end.as_bytes()) {
            let read = timeout(Duration::from_secs(60), self.0.read(&mut part)).await;
            match read.expect("something comes, or the end") {
                Ok(0) | Err(_) => break,
                Ok(length) => rest.extend_from_slice(&part[..length]),
            }
        }
        String::from_utf8(rest).unwrap()
    }
}

/// How a chunked response ends that is complete.
const LAST_CHUNK: &str = "\r\n0\r\n\r\n";

async fn reads_of_clients_that_take_nothing_come_free_and_their_bodies_are_cut(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let mut clients = scene.stall("/stream").await;
    scene.is_freed().await;
    for client in &mut clients {
        let rest = client.rest(LAST_CHUNK).await;
        assert!(rest.len() < CHUNKS * CHUNK, "{}", rest.len());
        assert!(!rest.ends_with(LAST_CHUNK), "it looks complete");
        assert!(!rest.contains(END));
    }
    // All of them, and in order: more often than there are.
    for _ in 0..2 * READERS {
        assert_eq!(stage.send("GET /count").await.body, "1");
    }
    stage.nothing_is_stuck().await;
}

async fn bodies_of_known_size_are_cut_too(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let size = CHUNKS * CHUNK + END.len();
    let answer = stage.send(&format!("GET /sized/{CHUNKS}")).await;
    assert_eq!(
        answer.header("content-length"),
        Some(size.to_string().as_str())
    );
    assert_eq!(answer.body.len(), size);
    let mut clients = scene.stall("/sized").await;
    scene.is_freed().await;
    for client in &mut clients {
        let rest = client.rest(END).await;
        assert!(rest.len() < size, "{}", rest.len());
    }
    stage.nothing_is_stuck().await;
}

/// So slowly that the service is seldom asked for more: the system has sent ahead.
async fn a_client_that_reads_slowly_gets_everything(backend: Backend) {
    let scene = scene(backend).await;
    let mut client = Client::asks(&scene.stage.http, &format!("GET /stream/{CHUNKS}")).await;
    let (mut length, started) = (0, Instant::now());
    while started.elapsed() < 5 * LIMIT {
        let mut part = [0; 4 * 1024];
        client.0.read_exact(&mut part).await.unwrap();
        length += part.len();
        sleep(Duration::from_millis(40)).await;
    }
    let rest = client.rest(LAST_CHUNK).await;
    length += rest.len();
    assert!(length > CHUNKS * CHUNK, "{length}");
    assert!(rest.ends_with(&format!("{END}{LAST_CHUNK}")));
    scene.stage.nothing_is_stuck().await;
}

async fn a_body_that_waits_for_something_else_than_its_client_is_not_cut(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let mut client = Client::asks(&stage.http, "GET /waiting").await;
    let beginning = client.rest("the beginning, \r\n").await;
    assert!(beginning.ends_with("the beginning, \r\n"));
    sleep(3 * LIMIT).await;
    assert_eq!(stage.send("POST /go-on").await.status, 200);
    let rest = client.rest(LAST_CHUNK).await;
    assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    stage.nothing_is_stuck().await;
}

async fn a_body_that_has_given_its_read_back_may_wait_for_its_client(backend: Backend) {
    let scene = scene(backend).await;
    let mut client = Client::asks(&scene.stage.http, &format!("GET /early/{CHUNKS}")).await;
    sleep(3 * LIMIT).await;
    let rest = client.rest(LAST_CHUNK).await;
    assert!(rest.ends_with(&format!("{END}{LAST_CHUNK}")));
}

async fn a_body_that_fails_does_not_look_complete(backend: Backend) {
    let scene = scene(backend).await;
    for what in ["GET /broken/fails", "GET /broken/panics"] {
        let mut client = Client::of(&scene.stage.http).await;
        client.send(what).await;
        let rest = client.rest(LAST_CHUNK).await;
        assert!(!rest.ends_with(LAST_CHUNK), "{what}: {rest}");
    }
    scene.stage.nothing_is_stuck().await;
}

async fn a_connection_that_waits_between_two_requests_is_not_cut(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let mut client = Client::asks(&stage.http, "GET /stream/1").await;
    for _ in 0..2 {
        let rest = client.rest(LAST_CHUNK).await;
        assert!(rest.ends_with(LAST_CHUNK), "{rest}");
        sleep(2 * LIMIT).await;
        client.ask("GET /stream/1").await;
    }
}

/// By far not after the bound: it is the longest that there is.
async fn a_head_and_a_client_that_leaves_keep_nothing(backend: Backend) {
    let scene = scene_with(backend, "\"24days\"").await;
    let stage = &scene.stage;
    let tasks = || {
        rocket::tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    scene.is_freed().await;
    stage.nothing_is_stuck().await;
    let before = tasks();
    for _ in 0..2 * READERS {
        for path in ["stream", "sized"] {
            let answer = stage.send(&format!("HEAD /{path}/{CHUNKS}")).await;
            assert_eq!((answer.told(), answer.body.as_str()), ((200, None), ""));
        }
    }
    scene.is_freed().await;
    for path in ["/stream", "/sized"] {
        drop(scene.stall(path).await);
        scene.is_freed().await;
    }
    stage.nothing_is_stuck().await;
    // Connections that are kept for the next request have tasks too; a few.
    eventually("nothing watches these 24 bodies", async || {
        tasks() < before + READERS
    })
    .await;
}

mod files {
    use super::*;

    /// Whether all of the log can be put into the file and the log begun anew.
    async fn is_reset(databases: &Databases) -> bool {
        let mut connection = databases.sqlite(In::Main).await;
        sqlx::query("PRAGMA busy_timeout = 0")
            .execute(&mut connection)
            .await
            .unwrap();
        let (busy, ..): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        busy == 0
    }

    #[rocket::async_test]
    async fn a_client_that_takes_nothing_does_not_keep_the_log_growing() {
        let scene = scene(Backend::Sqlite).await;
        let stage = &scene.stage;
        let _clients = scene.stall("/stream").await;
        let answer = stage.send("POST /notes/after").await;
        assert_eq!(answer.told(), (200, Some("committed")));
        assert!(!is_reset(&stage.databases).await, "the readers keep it");
        eventually("the log begins anew", async || {
            is_reset(&stage.databases).await
        })
        .await;
    }
}

/// On one thread: what its tasks log is found by the thread that they run on.
#[test]
fn one_line_says_whose_connection_was_closed() {
    let runtime = rocket::tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let log = logged_here(|| {
        runtime.block_on(async {
            let scene = scene(Backend::Sqlite).await;
            let clients = scene.stall("/stream").await;
            scene.is_freed().await;
            // The others follow by themselves.
            for mut client in clients {
                client.rest(LAST_CHUNK).await;
            }
        });
    });
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("read_idle_timeout"))
        .collect();
    assert_eq!(lines.len(), READERS, "{log}");
    for line in lines {
        for said in [
            "WARN",
            "id=",
            "route=\"stream\"",
            "main",
            "client=127.0.0.1:",
        ] {
            assert!(line.contains(said), "{said} is missing from {line}");
        }
    }
}

on_each_backend!(
    reads_of_clients_that_take_nothing_come_free_and_their_bodies_are_cut,
    bodies_of_known_size_are_cut_too,
    a_client_that_reads_slowly_gets_everything,
    a_body_that_waits_for_something_else_than_its_client_is_not_cut,
    a_body_that_has_given_its_read_back_may_wait_for_its_client,
    a_body_that_fails_does_not_look_complete,
    a_connection_that_waits_between_two_requests_is_not_cut,
    a_head_and_a_client_that_leaves_keep_nothing,
);
