//! The leases of this library, and the databases of the benchmark.

use rocket::figment::Figment;
use rocket_db_pools::Pool;
use rocket_tx::db::UrlPool;
use rocket_tx_aggregates::lock::{Hold, Lease, UrlLeases, UrlLockManager};
use sqlx::{Connection, PgConnection};

use crate::serve::Locks;

/// The number of connections that leases have by default on Postgres.
pub const CONNECTIONS: u32 = 4;

pub struct Ours {
    url: String,
    manager: Option<UrlLockManager>,
}

impl Ours {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            manager: None,
        }
    }
}

impl Locks for Ours {
    type Held = Lease<UrlLeases>;

    async fn connect(&mut self) {
        self.manager = Some(manager(&self.url).await);
    }

    async fn acquire(&self, _: usize, key: &str) -> Lease<UrlLeases> {
        self.manager.as_ref().unwrap().acquire(key).await.unwrap()
    }

    async fn release(&self, _: usize, held: Lease<UrlLeases>) {
        held.release().await.unwrap();
    }
}

async fn manager(url: &str) -> UrlLockManager {
    let figment = Figment::from(("url", url))
        .merge(("max_connections", 4))
        .merge(("connect_timeout", 5));
    UrlLockManager::new(&UrlPool::init(&figment).await.unwrap()).with_max_wait(None)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

pub fn migrate(url: &str) {
    run(async { manager(url).await.migrate().await.unwrap() });
}

pub fn sqlite_url() -> String {
    let folder = tempfile::tempdir().unwrap().keep();
    format!("sqlite:{}", folder.join("leases.db").display())
}

pub fn postgres_url() -> String {
    let cluster = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL is not set; run: tests/run --postgres cargo bench");
    let name = format!("bench_leases_{}", std::process::id());
    run(async {
        let mut admin = PgConnection::connect(&cluster).await.unwrap();
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&mut admin).await.unwrap();
    });
    format!("{}/{name}", cluster.rsplit_once('/').unwrap().0)
}
