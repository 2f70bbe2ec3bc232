//! A service with tests: each test has a database of its own.
//!
//!     cargo test --package rocket_tx --example tested --features testing
//!     cargo run --package rocket_tx --example tested --features testing
//!     curl -i -X POST http://127.0.0.1:8000/seats/7/ann    # 201
//!     curl -i -X POST http://127.0.0.1:8000/seats/7/bob    # 409: the seat is taken
//!
//! A service of your own needs the feature `testing` only in its `dev-dependencies`.

use std::sync::Arc;

use rocket::http::Status;
use rocket::tokio::sync::Mutex;
use rocket::{State, launch, post, routes};
use rocket_tx::db::{self, Migrations, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::{Error, Outstanding, Settlement, Tx, problem_catchers};

#[derive(Database)]
#[database("cinema")]
struct Cinema(SqlitePool);

/// Sends letters. A test reads those that were sent.
#[derive(Clone, Default)]
struct Mailer(Arc<Mutex<Vec<String>>>);

impl Mailer {
    async fn send(self, letter: String) {
        println!("sending: {letter}");
        self.0.lock().await.push(letter);
    }
}

#[post("/seats/<seat>/<name>")]
async fn reserve(
    seat: i64,
    name: &str,
    mut tx: Tx<Cinema>,
    outstanding: &Outstanding,
    mailer: &State<Mailer>,
) -> Result<Status, Error> {
    sqlx::query("INSERT INTO seats (seat, name) VALUES ($1, $2)")
        .bind(seat)
        .bind(name)
        .execute(&mut tx)
        .await?;
    let letter = format!("{name} has seat {seat}");
    outstanding.after_commit(mailer.inner().clone().send(letter))?;
    Ok(Status::Created)
}

#[launch]
fn rocket() -> _ {
    let migrations = Migrations::new().sqlite(sqlx::migrate!("examples/migrations/cinema"));
    let figment =
        rocket::Config::figment().merge(("databases.cinema.url", "sqlite:data/cinema.db"));
    rocket::custom(figment)
        .attach(db::init::<Cinema>().migrations(migrations))
        .attach(Settlement::new())
        .manage(Mailer::default())
        .mount("/", routes![reserve])
        .register("/", problem_catchers())
}

#[cfg(test)]
mod tests {
    use rocket::tokio::join;
    use rocket_tx::testing;

    use super::*;

    #[rocket::async_test]
    async fn a_reserved_seat_is_stored_and_confirmed() {
        let app = testing::launch(rocket()).await;
        let response = app.post("/seats/7/ann").dispatch().await;
        assert_eq!(response.status(), Status::Created);

        let mut cinema = app.read::<Cinema>().await;
        let name: String = sqlx::query_scalar("SELECT name FROM seats WHERE seat = 7")
            .fetch_one(&mut cinema)
            .await
            .expect("the seat is reserved");
        assert_eq!(name, "ann");

        app.hooks_have_run().await;
        let mailer = app.rocket().state::<Mailer>().expect("it is managed");
        assert_eq!(*mailer.0.lock().await, ["ann has seat 7"]);
        app.assert_nothing_outstanding();
    }

    #[rocket::async_test]
    async fn one_of_two_concurrent_requests_gets_the_seat() {
        let app = testing::launch(rocket()).await;
        let (ann, bob) = join!(
            app.post("/seats/7/ann").dispatch(),
            app.post("/seats/7/bob").dispatch()
        );
        let mut statuses = [ann.status().code, bob.status().code];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409]);
    }

    #[rocket::async_test]
    async fn a_taken_seat_is_refused() {
        let app = testing::launch(rocket()).await;
        app.execute::<Cinema>("INSERT INTO seats (seat, name) VALUES (7, 'eve')")
            .await;
        let response = app.post("/seats/7/ann").dispatch().await;
        assert_eq!(response.status(), Status::Conflict);
        app.hooks_have_run().await;
        let mailer = app.rocket().state::<Mailer>().expect("it is managed");
        assert!(mailer.0.lock().await.is_empty());
    }
}
