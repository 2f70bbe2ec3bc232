//! The server, in a separate process: with the library, or written by hand without it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket::http::Status;
use rocket::{Build, Rocket, State, get, post, routes};
use rocket_db_pools::Database;
use rocket_tx::db::{self, UrlConnection, UrlPool};
use rocket_tx::{Error, Read, Settlement, Tx, with_backend};
use rocket_tx_idempotency::{self as idempotency, idempotent};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _, Executor, PgConnection, PgPool, SqlitePool};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

impl FromStr for Backend {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "sqlite" => Ok(Self::Sqlite),
            "postgres" => Ok(Self::Postgres),
            _ => Err(()),
        }
    }
}

const CONNECTIONS: u32 = 8;

/// The roles of servers with two databases: they commit atomically, or one after the other.
pub const WITH_TWO: [&str; 2] = ["required", "off"];

const AUDIT: &str = "_audit";

const TABLES: &str = "\
    CREATE TABLE written (text TEXT NOT NULL);
    CREATE TABLE kept (id BIGINT PRIMARY KEY, text TEXT NOT NULL);
    INSERT INTO kept
    WITH RECURSIVE n (id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n WHERE id < 999)
    SELECT id, 'the text of a row' FROM n;";

const INSERT: &str = "INSERT INTO written (text) VALUES ($1)";
const SELECT: &str = "SELECT text FROM kept WHERE id = $1";

/// A server process and its database. Dropping this value ends the process.
pub struct Server {
    process: Child,
    backend: Backend,
    url: String,
    /// Whether it has a second database.
    has_two: bool,
    pub port: u16,
    /// The number of rows that its responses report as written.
    written: u64,
    _folder: tempfile::TempDir,
}

impl Server {
    pub async fn start(backend: Backend, role: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match backend {
            Backend::Sqlite => format!("sqlite:{}", folder.path().join("bench.db").display()),
            Backend::Postgres => postgres_database(role).await,
        };
        match backend {
            Backend::Sqlite => sqlite(&url)
                .connect()
                .await
                .unwrap()
                .execute(TABLES)
                .await
                .map(drop),
            Backend::Postgres => PgConnection::connect(&url)
                .await
                .unwrap()
                .execute(sqlx::raw_sql(TABLES))
                .await
                .map(drop),
        }
        .unwrap();
        if WITH_TWO.contains(&role) {
            let audit = postgres_database(&format!("{role}{AUDIT}")).await;
            let mut connection = PgConnection::connect(&audit).await.unwrap();
            connection.execute(sqlx::raw_sql(TABLES)).await.unwrap();
        }
        let name = format!("{backend:?}").to_lowercase();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["serve", role, &name, &url])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Rocket applies `log_level` after the fairings have run, so a line of theirs may come first.
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut ports = lines.map_while(Result::ok);
        let port = ports.find_map(|line| line.parse().ok());
        let port = port.expect("the server did not start");
        Self {
            process,
            backend,
            url,
            has_two: WITH_TWO.contains(&role),
            port,
            written: 0,
            _folder: folder,
        }
    }

    pub fn has_written(&mut self, rows: u64) {
        self.written += rows;
    }

    /// Returns the processor time that the server has used, in microseconds; 0 on systems without
    /// `/proc`.
    pub fn cpu_time(&self) -> f64 {
        const TICK: f64 = 10_000.0;

        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.unwrap_or_default();
        // The process name, in parentheses, may contain spaces. User time and system time are the
        // 12th and 13th word after it.
        let words = stat.rsplit(')').next().unwrap_or_default();
        let ticks = words.split_whitespace().skip(11).take(2);
        ticks.map(|word| word.parse::<f64>().unwrap() * TICK).sum()
    }

    /// Ends the process and checks that each 201 has stored a row, so that the benchmark has not
    /// measured failures.
    pub async fn stop(mut self) {
        const COUNT: &str = "SELECT count(*) FROM written";

        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let count: i64 = match self.backend {
            Backend::Sqlite => {
                let mut db = sqlite(&self.url).connect().await.unwrap();
                sqlx::query_scalar(COUNT).fetch_one(&mut db).await.unwrap()
            }
            Backend::Postgres => {
                let mut db = PgConnection::connect(&self.url).await.unwrap();
                sqlx::query_scalar(COUNT).fetch_one(&mut db).await.unwrap()
            }
        };
        assert_eq!(u64::try_from(count), Ok(self.written));
        if self.backend == Backend::Postgres {
            let (cluster, name) = self.url.rsplit_once('/').unwrap();
            let mut admin = PgConnection::connect(&format!("{cluster}/postgres"))
                .await
                .unwrap();
            let second = self.has_two.then(|| second(name));
            for name in [Some(name.to_owned()), second].into_iter().flatten() {
                let drop = sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
                admin.execute(drop).await.unwrap();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the name or the URL of the second database, from that of the first one.
fn second(first: &str) -> String {
    format!("{first}{AUDIT}")
}

async fn postgres_database(role: &str) -> String {
    let cluster = std::env::var("TEST_POSTGRES_URL").unwrap();
    let name = match role.strip_suffix(AUDIT) {
        Some(role) => second(&format!("bench_{role}_{}", std::process::id())),
        None => format!("bench_{role}_{}", std::process::id()),
    };
    let mut admin = PgConnection::connect(&cluster).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    admin.execute(create).await.unwrap();
    let (server, _) = cluster.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// Returns the settings that the library uses for its writer.
fn sqlite(url: &str) -> SqliteConnectOptions {
    SqliteConnectOptions::from_str(url)
        .unwrap()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
}

pub async fn serve(role: &str, backend: Backend, url: &str) {
    let figment = Figment::from(rocket::Config::release_default())
        .merge(("port", 0))
        .merge(("log_level", "off"))
        .merge(("databases.main.url", url))
        .merge(("databases.main.max_connections", CONNECTIONS))
        // The same setting as in the server without the library. The benchmark `durability`
        // measures what durability costs.
        .merge(("databases.main.synchronous", "normal"));
    let rocket = rocket::custom(figment);
    let rocket = match role {
        "with" => with_library(rocket),
        mode if WITH_TWO.contains(&mode) => with_two_databases(rocket, mode, url),
        _ => by_hand(rocket, backend, url).await,
    };
    let ready = AdHoc::on_liftoff("Ready", |rocket| {
        Box::pin(async move { println!("{}", rocket.config().port) })
    });
    rocket.attach(ready).launch().await.unwrap();
}

#[derive(Database)]
#[database("main")]
struct Main(UrlPool);

fn with_library(rocket: Rocket<Build>) -> Rocket<Build> {
    rocket
        .attach(db::init::<Main>())
        .attach(idempotency::init::<Main>().shared_keys())
        .attach(Settlement::new())
        .mount("/", routes![tx_write, tx_read, read])
        .mount("/keyed", idempotent::<Main>(routes![tx_write]))
}

#[derive(Database)]
#[database("audit")]
struct Audit(UrlPool);

fn with_two_databases(rocket: Rocket<Build>, mode: &str, url: &str) -> Rocket<Build> {
    let figment = rocket.figment().clone();
    let figment = figment
        .merge(("atomic_commit", mode))
        .merge(("databases.audit.url", second(url)))
        .merge(("databases.audit.max_connections", CONNECTIONS));
    rocket
        .configure(figment)
        .attach(db::init::<Main>())
        .attach(db::init::<Audit>())
        .attach(Settlement::new())
        .mount("/", routes![both])
}

#[post("/both/<text>")]
async fn both(text: &str, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    with_backend!(main, |db| {
        sqlx::query(INSERT).bind(text).execute(db).await?;
    });
    with_backend!(audit, |db| {
        sqlx::query(INSERT).bind(text).execute(db).await?;
    });
    Ok(Status::Created)
}

#[post("/tx/<text>")]
async fn tx_write(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    with_backend!(tx, |db| {
        sqlx::query(INSERT).bind(text).execute(db).await?;
    });
    Ok(Status::Created)
}

#[get("/tx/<id>")]
async fn tx_read(id: i64, mut tx: Tx<Main>) -> Result<String, Error> {
    find(&mut tx, id).await
}

#[get("/read/<id>")]
async fn read(id: i64, mut read: Read<Main>) -> Result<String, Error> {
    find(&mut read, id).await
}

async fn find(connection: &mut UrlConnection, id: i64) -> Result<String, Error> {
    let text = with_backend!(connection, |db| {
        sqlx::query_scalar(SELECT).bind(id).fetch_one(db).await?
    });
    Ok(text)
}

/// The pools of the server without the library: one for writers and one for readers.
struct ByHand<P> {
    writers: P,
    readers: P,
}

async fn by_hand(rocket: Rocket<Build>, backend: Backend, url: &str) -> Rocket<Build> {
    match backend {
        Backend::Sqlite => {
            // One writer, as in the library: several would only wait for each other's locks.
            let writers = SqlitePoolOptions::new().max_connections(1);
            // Like the library's readers, these connections are not tested before use: a SQLite
            // connection is a thread of this process, and no network can break it.
            let readers = SqlitePoolOptions::new()
                .max_connections(CONNECTIONS)
                .test_before_acquire(false);
            let only_reads = sqlite(url).pragma("query_only", "ON");
            let pools = ByHand {
                writers: writers.connect_with(sqlite(url)).await.unwrap(),
                readers: readers.connect_with(only_reads).await.unwrap(),
            };
            rocket
                .manage(pools)
                .mount("/", routes![sqlite_by_hand, sqlite_read_by_hand])
        }
        Backend::Postgres => {
            let pool = || PgPoolOptions::new().max_connections(CONNECTIONS);
            let options: PgConnectOptions = url.parse().unwrap();
            let only_reads = options
                .clone()
                .options([("default_transaction_read_only", "on")]);
            let pools = ByHand {
                writers: pool().connect_with(options).await.unwrap(),
                readers: pool().connect_with(only_reads).await.unwrap(),
            };
            rocket
                .manage(pools)
                .mount("/", routes![postgres_by_hand, postgres_read_by_hand])
        }
    }
}

#[post("/hand/<text>")]
async fn sqlite_by_hand(text: &str, pools: &State<ByHand<SqlitePool>>) -> Result<Status, Status> {
    let work = async {
        let mut tx = pools.writers.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(INSERT).bind(text).execute(&mut *tx).await?;
        tx.commit().await
    };
    work.await.map_err(failed)?;
    Ok(Status::Created)
}

#[get("/hand/<id>")]
async fn sqlite_read_by_hand(id: i64, pools: &State<ByHand<SqlitePool>>) -> Result<String, Status> {
    let text = sqlx::query_scalar(SELECT).bind(id);
    text.fetch_one(&pools.readers).await.map_err(failed)
}

#[post("/hand/<text>")]
async fn postgres_by_hand(text: &str, pools: &State<ByHand<PgPool>>) -> Result<Status, Status> {
    let work = async {
        let mut tx = pools.writers.begin().await?;
        sqlx::query(INSERT).bind(text).execute(&mut *tx).await?;
        tx.commit().await
    };
    work.await.map_err(failed)?;
    Ok(Status::Created)
}

#[get("/hand/<id>")]
async fn postgres_read_by_hand(id: i64, pools: &State<ByHand<PgPool>>) -> Result<String, Status> {
    let text = sqlx::query_scalar(SELECT).bind(id);
    text.fetch_one(&pools.readers).await.map_err(failed)
}

fn failed(_: sqlx::Error) -> Status {
    Status::InternalServerError
}
