//! Events that a handler records in a leased aggregate and does not commit. They are not stored, and
//! the log warns about them if the request commits.

use rocket::figment::Figment;
use rocket::http::Status;
use rocket::{Config, post, routes};
use rocket_tx::testing;
use rocket_tx::{Error, Settlement, db};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates};

use super::{Added, Counter};
use crate::support::Main;
use crate::support::launch::logged;

const WARNING: &str = "call `commit` after `record`";

#[post("/new")]
async fn new(counters: Aggregates<Main, Counter>) -> Result<(), Error> {
    let mut counter = Counter::fresh("a")?;
    counter.record(Added { number: 0 })?;
    Ok(counters.commit(&mut counter).await?)
}

/// Records an event before the commit, or after it, or both. Responds with `status`.
#[post("/<when>/<status>")]
async fn add(
    when: &str,
    status: u16,
    counters: Aggregates<Main, Counter>,
) -> Result<Status, Error> {
    let mut counter = counters.get("a").await?.ok_or(Error::NotFound)?;
    if when != "after" {
        counter.record(Added { number: 1 })?;
    }
    if when != "without" {
        counters.commit(&mut counter).await?;
    }
    if when == "after" {
        counter.record(Added { number: 1 })?;
    }
    Ok(Status::new(status))
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn events_that_are_not_committed_are_warned_about() {
        let figment = Figment::from(Config::debug_default())
            .merge(("log_level", "off"))
            .merge(("databases.main.url", "sqlite:main.db"));
        let rocket = rocket::custom(figment)
            .attach(db::init::<Main>())
            .attach(aggregate::init::<Main>())
            .attach(Settlement::new())
            .mount("/", routes![new, add]);
        let app = testing::launch(rocket).await;
        assert_eq!(app.post("/new").dispatch().await.status(), Status::Ok);
        for (path, is_warned) in [
            ("/before/200", false),
            ("/after/200", true),
            ("/without/201", true),
            ("/without/422", false),
        ] {
            let (response, log) = logged(app.post(path).dispatch()).await;
            assert!(response.status().code < 500, "{path}: {log}");
            assert_eq!(log.contains(WARNING), is_warned, "{path}: {log}");
            assert_eq!(log.contains("counter:a"), is_warned, "{path}: {log}");
        }
    }
}
