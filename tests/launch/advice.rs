//! Mistakes that work in a quiet test: a warning in the debug profile, once for each route.

use rocket::figment::{Figment, Profile};
use rocket::http::ContentType;
use rocket::local::asynchronous::Client;
use rocket::{Config, get, post, routes};
use rocket_db_pools::Database;
use rocket_tx::db::{self, SqlitePool};
use rocket_tx::{Begin, Error, Read, Settlement, Tx, problem_catchers};

use crate::support::launch::logged;

#[derive(Database)]
#[database("first")]
struct First(SqlitePool);

#[derive(Database)]
#[database("second")]
struct Second(SqlitePool);

#[post("/body", data = "<_body>")]
async fn body(_tx: Tx<First>, _body: String) {}

#[post("/later", data = "<_body>")]
async fn later(begin: Begin<First>, _body: String) -> Result<(), Error> {
    begin.begin().await.map(drop)
}

#[get("/order")]
async fn order(_second: Tx<Second>, _first: Tx<First>) {}

#[get("/in_order")]
async fn in_order(_first: Tx<First>, _second: Read<Second>) {}

#[get("/both")]
async fn both(_tx: Tx<First>, _read: Read<First>) {}

async fn client(folder: &tempfile::TempDir, profile: Profile) -> Client {
    let file = |name: &str| folder.path().join(name).display().to_string();
    let figment = Figment::from(Config::debug_default())
        .select(profile)
        .merge(("log_level", "off"))
        .merge(("databases.first.url", file("first.db")))
        .merge(("databases.second.url", file("second.db")));
    let rocket = rocket::custom(figment)
        .attach(db::init::<First>())
        .attach(db::init::<Second>())
        .attach(Settlement::new())
        .mount("/", routes![body, later, order, in_order, both])
        .register("/", problem_catchers());
    Client::untracked(rocket).await.unwrap()
}

/// Returns the log of a request that must succeed.
async fn log_of(client: &Client, path: &str) -> String {
    let request = match path {
        "/body" | "/later" => client.post(path).header(ContentType::Plain).body("text"),
        _ => client.get(path),
    };
    let (response, log) = logged(request.dispatch()).await;
    assert_eq!(response.status().code, 200, "{path}: {log}");
    log
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn a_transaction_before_the_body_is_warned_about_once_a_route() {
        let folder = tempfile::tempdir().unwrap();
        let client = client(&folder, Config::DEBUG_PROFILE).await;
        let log = log_of(&client, "/body").await;
        assert!(
            log.contains("take `Begin`") && log.contains("body"),
            "{log}"
        );
        for path in ["/body", "/later"] {
            let log = log_of(&client, path).await;
            assert!(!log.contains("WARN"), "{path}: {log}");
        }
    }

    #[rocket::async_test]
    async fn databases_out_of_order_are_warned_about_once_a_route() {
        let folder = tempfile::tempdir().unwrap();
        let client = client(&folder, Config::DEBUG_PROFILE).await;
        let log = log_of(&client, "/order").await;
        for part in ["takes `first`", "holds `second`", "order of attachment"] {
            assert!(log.contains(part), "no {part} in {log}");
        }
        for path in ["/order", "/in_order"] {
            let log = log_of(&client, path).await;
            assert!(!log.contains("WARN"), "{path}: {log}");
        }
    }

    #[rocket::async_test]
    async fn nothing_is_warned_about_in_the_release_profile() {
        let folder = tempfile::tempdir().unwrap();
        let client = client(&folder, Config::RELEASE_PROFILE).await;
        for path in ["/body", "/order"] {
            let log = log_of(&client, path).await;
            assert!(!log.contains("WARN"), "{path}: {log}");
        }
    }

    #[rocket::async_test]
    async fn a_read_beside_a_transaction_is_explained_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let client = client(&folder, Config::DEBUG_PROFILE).await;
        let (response, log) = logged(client.get("/both").dispatch()).await;
        assert_eq!(response.status().code, 500);
        assert!(log.contains("stand before `Tx`"), "{log}");
        let body = response.into_string().await.unwrap();
        assert!(body.contains("second-connection"), "{body}");
        assert!(!body.contains("`Tx`"), "{body}");
    }
}
