//! A service that writes one database through rocket_tx and another one through tokio-postgres. Each
//! request commits both or rolls both back.
//!
//! ```sh
//! cd examples/another_client     # its Rocket.toml names a Postgres database
//! cargo run
//! curl -i -X POST '127.0.0.1:8000/orders/ann?cents=1200'     # 201: both are committed
//! curl -i -X POST '127.0.0.1:8000/orders/ann?cents=1200000'  # 402: both are rolled back
//! curl -i -X POST '127.0.0.1:8000/charges/nobody?cents=1'    # 409: COMMIT is refused
//! ```

mod ledger;
#[cfg(test)]
mod tests;

use rocket::http::Status;
use rocket::{launch, post, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::{Begin, Error, Settlement, problem_catchers};

use ledger::{Ledger, Transaction};

#[derive(Database)]
#[database("main")]
struct Main(SqlitePool);

async fn add_charge(ledger: &Transaction, account: &str, cents: i64) -> Result<(), Error> {
    let insert = "INSERT INTO charges (account, cents) VALUES ($1, $2)";
    let inserted = ledger.execute(insert, &[&account, &cents]).await;
    inserted.map_err(ledger::failed)?;
    Ok(())
}

#[post("/orders/<account>?<cents>")]
async fn order(
    account: &str,
    cents: i64,
    ledger: Ledger<'_>,
    main: Begin<Main>,
) -> Result<Status, Error> {
    let ledger = ledger.begin().await?; // joins first, so it is committed first
    add_charge(&ledger, account, cents).await?;

    let mut tx = main.begin().await?;
    sqlx::query("INSERT INTO orders (account, cents) VALUES ($1, $2)")
        .bind(account)
        .bind(cents)
        .execute(&mut *tx)
        .await?;
    match cents {
        ..=100_000 => Ok(Status::Created),
        _ => Ok(Status::PaymentRequired), // rolls both back
    }
}

#[post("/charges/<account>?<cents>")]
async fn charge(account: &str, cents: i64, ledger: Ledger<'_>) -> Result<Status, Error> {
    let ledger = ledger.begin().await?;
    add_charge(&ledger, account, cents).await?;
    Ok(Status::Created)
}

#[launch]
fn rocket() -> _ {
    rocket::build()
        .attach(ledger::init())
        .attach(db::init::<Main>().migrations(Migrations::new().sqlite(sqlx::migrate!())))
        .attach(Settlement::new())
        .mount("/", routes![order, charge])
        .register("/", problem_catchers())
}
