//! One request writes to two databases: a failure rolls both back.
//!
//! Two SQLite files commit one after the other, so a kill between their COMMITs leaves the first one
//! committed. With Postgres as one of the databases, both commit or neither.
//!
//!     cargo run --package rocket_tx --example two_databases
//!     curl -i -X POST http://127.0.0.1:8000/orders/tea/350      # 201
//!     curl -i -X POST http://127.0.0.1:8000/orders/yacht/-1     # 409: both are rolled back
//!     curl http://127.0.0.1:8000/orders                         # 1 orders, 1 charges
//!
//! A request must take its databases in the order in which they are attached below. So `Tx<Shop>`
//! comes before `Tx<Ledger>` in every handler.

use rocket::http::Status;
use rocket::{get, launch, post, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::{Error, Outstanding, Read, Settlement, Tx, problem_catchers};

#[derive(Database)]
#[database("shop")]
struct Shop(SqlitePool);

#[derive(Database)]
#[database("ledger")]
struct Ledger(SqlitePool);

#[post("/orders/<item>/<cents>")]
async fn order(
    item: &str,
    cents: i64,
    mut shop: Tx<Shop>,
    mut ledger: Tx<Ledger>,
    outstanding: &Outstanding,
) -> Result<Status, Error> {
    let order: i64 = sqlx::query_scalar("INSERT INTO orders (item) VALUES ($1) RETURNING id")
        .bind(item)
        .fetch_one(&mut shop)
        .await?;
    charge(&mut ledger, order, cents).await?;
    // Runs only if the request commits.
    outstanding.after_commit(async move { println!("order {order} goes to the warehouse") })?;
    Ok(Status::Created)
}

/// Charges an order. This function does not know the other database: its error is enough to roll
/// back both.
async fn charge(ledger: &mut Tx<Ledger>, order: i64, cents: i64) -> Result<(), Error> {
    if cents < 0 {
        return Err(Error::Conflict("a charge must not be negative".into()));
    }
    sqlx::query("INSERT INTO charges (order_id, cents) VALUES ($1, $2)")
        .bind(order)
        .bind(cents)
        .execute(ledger)
        .await?;
    Ok(())
}

#[get("/orders")]
async fn count(mut shop: Read<Shop>, mut ledger: Read<Ledger>) -> Result<String, Error> {
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(&mut shop)
        .await?;
    let charges: i64 = sqlx::query_scalar("SELECT count(*) FROM charges")
        .fetch_one(&mut ledger)
        .await?;
    Ok(format!("{orders} orders, {charges} charges\n"))
}

#[launch]
fn rocket() -> _ {
    let shop = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/shop"));
    let ledger = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/ledger"));
    let figment = rocket::Config::figment()
        .merge(("databases.shop.url", "sqlite:data/shop.db"))
        .merge(("databases.ledger.url", "sqlite:data/ledger.db"));
    rocket::custom(figment)
        .attach(db::init::<Shop>().migrations(shop))
        .attach(db::init::<Ledger>().migrations(ledger))
        .attach(Settlement::new())
        .mount("/", routes![order, count])
        .register("/", problem_catchers())
}
