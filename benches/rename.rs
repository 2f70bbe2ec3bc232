//! Compares the reference service of this tree with another build of it: how many `rename` commands
//! a second, each on an aggregate that no other client uses, and what a command costs.
//!
//!     git worktree add /tmp/before COMMIT
//!     (cd /tmp/before && cargo build --release)
//!     tests/run --postgres cargo bench --bench rename -- /tmp/before/target/release/rocket_tx_service
//!
//! The services run on databases of their own, first on SQLite, then on Postgres (`sqlite` or
//! `postgres` as a second argument chooses one). On Postgres each of them runs twice: with atomic
//! commit, and with `atomic_commit = "off"`, that is with one COMMIT after the other. They are loaded
//! in turn, for two seconds each. The results are ratios within a round: the median of all rounds,
//! with minimum and maximum.
//!
//! Other load on the machine changes how many commands there are in a second. It changes much less
//! what a command costs: the CPU time of the service, the CPU time of the processes of the Postgres
//! server that serve it, and the context switches of the service. Linux counts all of these.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod cpu;

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
    let this = env!("CARGO_BIN_EXE_rocket_tx_service");
    // Two SQLite files commit one after the other in any case.
    let settings = match backend {
        "postgres" => &["auto", "off"][..],
        _ => &["off"],
    };
    let kinds: Vec<_> = (settings.iter())
        .flat_map(|setting| {
            [
                ("the other", other, *setting),
                ("this tree", this, *setting),
            ]
        })
        .collect();
    let mut services = Vec::new();
    for (number, (_, program, atomic_commit)) in kinds.iter().enumerate() {
        let name = format!("rename_{number}");
        services.push(Service::start(program, backend, &name, atomic_commit).await);
    }
    let mut slices: Vec<Vec<Slice>> = kinds.iter().map(|_| Vec::new()).collect();
    // The first round is a warm-up and is not counted.
    for round in 0..=ROUNDS {
        for turn in 0..services.len() {
            let which = (turn + round) % services.len();
            let slice = services[which].load().await;
            if round > 0 {
                slices[which].push(slice);
            }
        }
    }
    println!("\n{backend}, {CLIENTS} clients, {ROUNDS} rounds of {SLICE:?}; for each command:");
    for ((name, _, setting), slices) in kinds.iter().zip(&slices) {
        let [rate, service, server, switches] = [
            |slice: &Slice| slice.rate,
            |slice: &Slice| slice.service_cpu,
            |slice: &Slice| slice.server_cpu,
            |slice: &Slice| slice.switches,
        ]
        .map(|figure| median(slices.iter().map(figure).collect())[0]);
        println!(
            "{name}, {setting:<5}{rate:>6.0} renames/s, CPU of the service {service:>5.0} us and of the \
             server {server:>5.0} us, {switches:>4.0} context switches of the service"
        );
    }
    for (setting, pair) in settings.iter().zip(slices.chunks(2)) {
        let rounds = || pair[1].iter().zip(&pair[0]);
        let rates = rounds().map(|(ours, other)| ours.rate / other.rate);
        let costs = rounds().map(|(ours, other)| ours.cpu() / other.cpu());
        let [rate, least, most] = median(rates.collect());
        let [cost, lowest, highest] = median(costs.collect());
        println!(
            "this / other, {setting}: renames/s {rate:.3} ({least:.3} to {most:.3}), CPU {cost:.3} \
             ({lowest:.3} to {highest:.3})"
        );
    }
}

/// Returns the median, the minimum and the maximum.
fn median(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    [
        figures[figures.len() / 2],
        figures[0],
        figures[figures.len() - 1],
    ]
}

/// The commands of one slice: how many a second, and what one of them cost. Times are in
/// microseconds.
struct Slice {
    rate: f64,
    service_cpu: f64,
    server_cpu: f64,
    switches: f64,
}

impl Slice {
    fn cpu(&self) -> f64 {
        self.service_cpu + self.server_cpu
    }
}

/// What a service has used since its start.
#[derive(Clone, Copy)]
struct Used {
    service_cpu: f64,
    server_cpu: f64,
    switches: f64,
}

/// A service process with its databases. Dropping this value ends the process.
struct Service {
    process: Child,
    port: u16,
    /// The process ids of the server that serve the service.
    backends: Vec<u32>,
    _folder: tempfile::TempDir,
}

impl Service {
    async fn start(program: &str, backend: &str, name: &str, atomic_commit: &str) -> Self {
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
            .env("ROCKET_ATOMIC_COMMIT", atomic_commit)
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
        let mut service = Self {
            process,
            port,
            backends: Vec::new(),
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
        // So that all connections are open.
        service.load().await;
        if backend == "postgres" {
            service.backends = backends(name).await;
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

    async fn load(&self) -> Slice {
        let before = self.used();
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(rename(self.port, client, started + SLICE));
        }
        let commands = clients.join_all().await.into_iter().sum::<usize>() as f64;
        let took = started.elapsed();
        let after = self.used();
        Slice {
            rate: commands / took.as_secs_f64(),
            service_cpu: (after.service_cpu - before.service_cpu) / commands,
            server_cpu: (after.server_cpu - before.server_cpu) / commands,
            switches: (after.switches - before.switches) / commands,
        }
    }

    fn used(&self) -> Used {
        let pid = self.process.id();
        Used {
            service_cpu: cpu::of(pid),
            server_cpu: self.backends.iter().map(|pid| cpu::of(*pid)).sum(),
            switches: switches(pid),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns how often the threads of a process were switched away from.
fn switches(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let status = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("status"));
    let texts = (threads.into_iter().flatten().flatten()).filter_map(|it| status(it).ok());
    let count = |text: String| -> f64 {
        let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
        let counts = lines.filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok());
        counts.sum()
    };
    texts.map(count).sum()
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

fn cluster() -> String {
    std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL is not set; run: tests/run --postgres cargo bench")
}

/// Returns the processes of the server that serve the databases of the service `name`.
async fn backends(name: &str) -> Vec<u32> {
    let mut admin = PgConnection::connect(&cluster()).await.unwrap();
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname LIKE 'bench_' || $1 || '_%'";
    let pids = sqlx::query_scalar(sql).bind(name).fetch_all(&mut admin);
    let pids: Vec<i32> = pids.await.unwrap();
    pids.into_iter().map(i32::unsigned_abs).collect()
}

async fn postgres_url(name: &str) -> String {
    let cluster = cluster();
    let name = format!("bench_{name}_{}", std::process::id());
    let mut admin = PgConnection::connect(&cluster).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    admin.execute(create).await.unwrap();
    format!("{}/{name}", cluster.rsplit_once('/').unwrap().0)
}
