//! These tests need a Postgres server at `TEST_POSTGRES_URL`, and a role that may create databases.

mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use deadpool_postgres::tokio_postgres::{self, Client, NoTls};
use rocket::figment::Figment;
use rocket::http::Status;
use rocket::local::asynchronous::LocalResponse;
use rocket::tokio::sync::Notify;
use rocket::{Build, Rocket, State, catch, catchers, post, routes, tokio};
use rocket_tx::testing::{self, App};
use rocket_tx::{Begin, Error};

use crate::ledger::{self, Ledger};
use crate::{Main, add_charge};
use proxy::Proxy;

/// The service, with a ledger that belongs to one test.
struct Test {
    app: App,
    ledger: Client,
    server: Client,
    database: String,
}

impl Test {
    async fn new() -> Self {
        Self::with(|url| url).await
    }

    /// Gives the service the URL of the ledger that `through` returns.
    async fn with(through: impl FnOnce(String) -> String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        let url = std::env::var("TEST_POSTGRES_URL");
        let url = url.expect("run these tests by `tests/run another_client`");
        let server = connect(&url).await;
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let database = format!("another_client_{process}_{number}");
        let create = format!("CREATE DATABASE {database}");
        server.batch_execute(&create).await.unwrap();
        let url = match url.rsplit_once('/') {
            Some((server, _)) => format!("{server}/{database}"),
            None => panic!("TEST_POSTGRES_URL names no database"),
        };
        let ledger = connect(&url).await;
        let app = testing::launch(service(&through(url))).await;
        Self {
            app,
            ledger,
            server,
            database,
        }
    }

    async fn post(&self, uri: &'static str) -> LocalResponse<'_> {
        self.app.post(uri).dispatch().await
    }

    /// The committed rows of the ledger and of the main database.
    async fn rows(&self) -> (i64, i64) {
        let charges = self.ledger.query_one("SELECT count(*) FROM charges", &[]);
        let charges = charges.await.unwrap().get(0);
        let mut main = self.app.read::<Main>().await;
        let orders = sqlx::query_scalar("SELECT count(*) FROM orders");
        (charges, orders.fetch_one(&mut *main).await.unwrap())
    }

    /// Sends `uri`, and checks the response and what is committed in both databases.
    async fn check(&self, uri: &'static str, status: u16, outcome: &str, rows: (i64, i64)) {
        let response = self.post(uri).await;
        let told = response.headers().get_one("Transaction-Outcome");
        assert_eq!(told, Some(outcome), "{uri}");
        assert_eq!(response.status().code, status, "{uri}");
        drop(response);
        assert_eq!(self.rows().await, rows, "{uri}");
        self.app.assert_nothing_outstanding();
    }

    /// Waits until no session of the service has an open transaction.
    async fn is_idle(&self) {
        const OPEN: &str = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND xact_start IS NOT NULL \
            AND pid <> pg_backend_pid()";

        let idle = async {
            while self
                .ledger
                .query_one(OPEN, &[])
                .await
                .unwrap()
                .get::<_, i64>(0)
                > 0
            {
                tokio::task::yield_now().await;
            }
        };
        let limit = std::time::Duration::from_secs(10);
        tokio::time::timeout(limit, idle)
            .await
            .expect("a transaction stays open");
    }

    async fn end(self) {
        drop(self.app);
        drop(self.ledger);
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        self.server.batch_execute(&drop).await.unwrap();
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn service(ledger_url: &str) -> Rocket<Build> {
    let rocket = crate::rocket();
    let figment = Figment::from(rocket.figment()).merge(("ledger_url", ledger_url));
    rocket
        .configure(figment)
        .manage(Arc::<Notify>::default())
        .mount(
            "/",
            routes![panics, ignores_an_error, commits_itself, keeps_it],
        )
        .register("/panics", catchers![hides_panics])
}

#[post("/panics")]
async fn panics(ledger: Ledger<'_>, main: Begin<Main>) -> Result<(), Error> {
    let ledger = ledger.begin().await?;
    add_charge(&ledger, "ann", 1).await?;
    let mut tx = main.begin().await?;
    let order = sqlx::query("INSERT INTO orders VALUES ('ann', 1)");
    order.execute(&mut *tx).await?;
    panic!("a handler panics");
}

#[catch(500)]
fn hides_panics() -> Status {
    Status::Ok
}

#[post("/ignores_an_error")]
async fn ignores_an_error(ledger: Ledger<'_>) -> Result<Status, Error> {
    let ledger = ledger.begin().await?;
    add_charge(&ledger, "ann", 1).await?;
    let _ignored = ledger.batch_execute("SELECT 1 / 0").await;
    Ok(Status::Created)
}

#[post("/commits_itself")]
async fn commits_itself(ledger: Ledger<'_>) -> Result<Status, Error> {
    let ledger = ledger.begin().await?;
    add_charge(&ledger, "ann", 1).await?;
    ledger
        .batch_execute("COMMIT")
        .await
        .map_err(ledger::failed)?;
    Ok(Status::PaymentRequired)
}

#[post("/keeps_it")]
async fn keeps_it(
    ledger: Ledger<'_>,
    main: Begin<Main>,
    end: &State<Arc<Notify>>,
) -> Result<Status, Error> {
    let ledger = ledger.begin().await?;
    add_charge(&ledger, "ann", 1).await?;
    let mut tx = main.begin().await?;
    let order = sqlx::query("INSERT INTO orders VALUES ('ann', 1)");
    order.execute(&mut *tx).await?;
    let end = Arc::clone(end);
    tokio::spawn(async move {
        end.notified().await;
        drop(ledger);
    });
    Ok(Status::Created)
}

#[rocket::async_test]
async fn a_success_commits_both() {
    let test = Test::new().await;
    test.check("/orders/ann?cents=5", 201, "committed", (1, 1))
        .await;
    test.end().await;
}

#[rocket::async_test]
async fn a_failure_rolls_both_back() {
    let test = Test::new().await;
    test.check("/orders/ann?cents=100001", 402, "rolled-back", (0, 0))
        .await;
    test.is_idle().await;
    test.end().await;
}

#[rocket::async_test]
async fn a_panic_rolls_both_back_although_a_catcher_responds_with_a_success() {
    let test = Test::new().await;
    test.check("/panics", 500, "rolled-back", (0, 0)).await;
    test.is_idle().await;
    test.end().await;
}

#[rocket::async_test]
async fn a_commit_that_the_server_refuses_rolls_both_back() {
    let test = Test::new().await;
    test.check("/orders/nobody?cents=5", 409, "rolled-back", (0, 0))
        .await;
    test.check("/charges/nobody?cents=5", 409, "rolled-back", (0, 0))
        .await;
    test.is_idle().await;
    test.end().await;
}

#[rocket::async_test]
async fn an_aborted_transaction_is_not_reported_as_a_success() {
    let test = Test::new().await;
    test.check("/ignores_an_error", 500, "rolled-back", (0, 0))
        .await;
    test.end().await;
}

#[rocket::async_test]
async fn a_commit_by_the_handler_is_reported_as_unknown() {
    let test = Test::new().await;
    test.check("/commits_itself", 500, "unknown", (1, 0)).await;
    test.end().await;
}

#[rocket::async_test]
async fn a_commit_without_a_reply_is_reported_as_unknown() {
    let proxy = Proxy::start().await;
    let test = Test::with(|url| proxy.in_front_of(&url)).await;
    test.check("/orders/ann?cents=5", 201, "committed", (1, 1))
        .await;

    proxy.keep_the_reply_to("COMMIT");
    // The server has committed, but the client cannot know it.
    test.check("/orders/ann?cents=5", 500, "unknown", (2, 1))
        .await;

    proxy.keep_nothing();
    test.check("/orders/ann?cents=5", 201, "committed", (3, 2))
        .await;
    test.end().await;
}

#[rocket::async_test]
async fn a_connection_that_is_lost_before_commit_rolls_both_back() {
    let proxy = Proxy::start().await;
    let test = Test::with(|url| proxy.in_front_of(&url)).await;
    proxy.keep_the_reply_to("SAVEPOINT");
    test.check("/orders/ann?cents=5", 503, "rolled-back", (0, 0))
        .await;
    test.is_idle().await;
    test.end().await;
}

#[rocket::async_test]
async fn a_transaction_that_a_task_keeps_rolls_both_back() {
    let test = Test::new().await;
    test.check("/keeps_it", 500, "rolled-back", (0, 0)).await;
    let end = test.app.rocket().state::<Arc<Notify>>();
    end.unwrap().notify_one();
    test.is_idle().await;
    test.end().await;
}
