//! Compares the reference service of this tree with another build of it: how many `rename` commands
//! a second, each on an aggregate that no other client uses.
//!
//!     git worktree add /tmp/before COMMIT
//!     (cd /tmp/before && cargo build --release)
//!     tests/run --postgres cargo bench --bench rename -- /tmp/before/target/release/rocket_tx_service
//!
//! Both services run on databases of their own, first on SQLite, then on Postgres (`sqlite` or
//! `postgres` as a second argument chooses one). They are loaded in turn, for two seconds each. The
//! result is the ratio within a round: the median of all rounds, with minimum and maximum.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rocket::tokio::net::TcpStream;
use rocket::tokio::spawn;
use rocket::tokio::task::JoinSet;
use rocket::tokio::time::sleep;
use sqlx::{Connection as _, Executor, PgConnection};

const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_secs(2);
const CLIENTS: usize = 16;
/// A client renames its aggregates in turn.
const AGGREGATES: usize = 8;

#[rocket::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let (other, backends) = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [other] => (*other, vec!["sqlite", "postgres"]),
        [other, one @ ("sqlite" | "postgres")] => (*other, vec![*one]),
        _ => {
            eprintln!("give the path of the other service, and perhaps sqlite or postgres");
            return ExitCode::FAILURE;
        }
    };
    for backend in backends {
        compare(other, backend).await;
    }
    ExitCode::SUCCESS
}

async fn compare(other: &str, backend: &str) {
    let services = [
        Service::start(env!("CARGO_BIN_EXE_rocket_tx_service"), backend, "this").await,
        Service::start(other, backend, "other").await,
    ];
    let mut rates: [Vec<f64>; 2] = Default::default();
    // The first round is a warm-up and is not counted.
    for round in 0..=ROUNDS {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let rate = services[which].load().await;
            if round > 0 {
                rates[which].push(rate);
            }
        }
    }
    let mut ratios: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(a, b)| a / b).collect();
    ratios.sort_by(f64::total_cmp);
    println!("\n{backend}, {CLIENTS} clients, {ROUNDS} rounds of {SLICE:?}");
    for (name, rates) in ["this tree", "the other"].iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        println!("{name:<12}{:>8.0} renames/s", rates[ROUNDS / 2]);
    }
    println!(
        "this / other {:.3} ({:.3} to {:.3})",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
}

/// A service process with its databases. Dropping this value ends the process.
struct Service {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Service {
    async fn start(program: &str, backend: &str, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut urls = Vec::new();
        for database in ["main", "audit"] {
            urls.push(match backend {
                "sqlite" => sqlite_url(folder.path(), database),
                _ => postgres_url(&format!("{name}_{database}")).await,
            });
        }
        let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let process = Command::new(program)
            .env("ROCKET_PROFILE", "release")
            .env("ROCKET_LOG_LEVEL", "off")
            .env("ROCKET_PORT", port.to_string())
            .env(
                "ROCKET_DATABASES",
                format!(
                    "{{main={{url=\"{}\"}},audit={{url=\"{}\"}}}}",
                    urls[0], urls[1]
                ),
            )
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self {
            process,
            port,
            _folder: folder,
        };
        service.is_up().await;
        for client in 0..CLIENTS {
            let mut connection = connect(service.port).await.unwrap();
            for number in 0..AGGREGATES {
                let id = id(client, number);
                let body = format!(r#"{{"id":"{id}","user_id":"bench","task":"a task"}}"#);
                let status = post(&mut connection, "/aggregates/todos", body).await;
                assert_eq!(status, StatusCode::CREATED);
            }
        }
        service
    }

    /// Waits up to 20 s until the service accepts connections.
    async fn is_up(&self) {
        for _ in 0..2_000 {
            if connect(self.port).await.is_some() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the service did not start; is its port still free?");
    }

    /// Returns the commands per second.
    async fn load(&self) -> f64 {
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(rename(self.port, client, started + SLICE));
        }
        let commands: usize = clients.join_all().await.into_iter().sum();
        commands as f64 / started.elapsed().as_secs_f64()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
    }
}

fn id(client: usize, number: usize) -> String {
    format!("{client}-{number}")
}

/// Sends commands until a point in time. Returns how many succeeded.
async fn rename(port: u16, client: usize, until: Instant) -> usize {
    let mut connection = connect(port).await.unwrap();
    let mut count = 0;
    while Instant::now() < until {
        let path = format!(
            "/aggregates/todos/{}/rename",
            id(client, count % AGGREGATES)
        );
        let body = format!(r#"{{"task":"task {count}"}}"#);
        let status = post(&mut connection, &path, body).await;
        assert_eq!(status, StatusCode::OK);
        count += 1;
    }
    count
}

async fn post(connection: &mut SendRequest<Full<Bytes>>, path: &str, body: String) -> StatusCode {
    let request = Request::builder()
        .method("POST")
        .uri(path)
        .header("Host", "localhost")
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    connection.ready().await.unwrap();
    let response = connection.send_request(request).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

async fn connect(port: u16) -> Option<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    spawn(connection);
    Some(sender)
}

fn sqlite_url(folder: &Path, database: &str) -> String {
    format!("sqlite:{}", folder.join(format!("{database}.db")).display())
}

async fn postgres_url(name: &str) -> String {
    let cluster = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL is not set; run: tests/run --postgres cargo bench");
    let name = format!("bench_{name}_{}", std::process::id());
    let mut admin = PgConnection::connect(&cluster).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    admin.execute(create).await.unwrap();
    format!("{}/{name}", cluster.rsplit_once('/').unwrap().0)
}
