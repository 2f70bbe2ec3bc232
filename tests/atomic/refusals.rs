//! Requests that cannot be committed in all databases are refused, with nothing changed.

use std::borrow::Cow;

use rocket_tx::tx::{Phase, Resource};
use rocket_tx::{Begin, Outstanding};

use super::*;

/// A database that this library does not know.
struct Elsewhere;

#[rocket::async_trait]
impl Resource for Elsewhere {
    fn name(&self) -> Cow<'_, str> {
        "elsewhere".into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn commit(&mut self) -> Result<(), Error> {
        panic!("it must not be committed");
    }
}

#[post("/elsewhere")]
pub async fn elsewhere(outstanding: &Outstanding, main: Begin<Main>) -> Result<Status, Error> {
    outstanding.join(Elsewhere)?;
    note(&mut *main.begin().await?, "written").await?;
    Ok(Status::Created)
}

#[rocket::async_test]
async fn required_refuses_a_request_with_a_database_of_its_own() {
    let settings = [("atomic_commit", "\"required\"")];
    let stage = Stage::on(Pair::Servers.databases().await, &settings, |rocket| {
        let routes = routes![both, elsewhere];
        rocket.mount("/", routes).attach(Settlement::new())
    })
    .await;
    let response = stage.send("POST /elsewhere").await;
    assert_eq!(
        response.summary(),
        (500, Some("rolled-back")),
        "{}",
        response.body
    );
    assert_eq!(response.kind(), "not-atomic");
    assert_eq!(stage.notes().await, [""; 0]);
    stage.nothing_is_stuck().await;
    let response = stage.send("POST /both").await;
    assert_eq!(response.summary(), (201, Some("committed")));
}

/// A rule or a trigger on the table of decisions prevents the row of a decision, without an error.
#[rocket::async_test]
async fn a_decision_that_is_not_inserted_commits_nothing() {
    const RULE: &str = "CREATE RULE swallow AS ON INSERT TO rocket_tx_decisions DO INSTEAD NOTHING";
    const TRIGGER: &str = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql \
             AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER swallow BEFORE INSERT ON rocket_tx_decisions \
             FOR EACH ROW EXECUTE FUNCTION swallow()";
    const IGNORE: &str = "CREATE TRIGGER swallow BEFORE INSERT ON rocket_tx_decisions \
         BEGIN SELECT RAISE(IGNORE); END";

    for (pair, swallow) in [
        (Pair::Servers, RULE),
        (Pair::Servers, TRIGGER),
        (Pair::MainOnFile, IGNORE),
    ] {
        let (stage, _) = stage(pair.databases().await).await;
        stage.databases.execute(In::Main, swallow).await;
        let response = stage.send("POST /both").await;
        let case = format!("{pair:?} {swallow}: {}", response.body);
        assert_eq!(response.summary(), (500, Some("rolled-back")), "{case}");
        assert_eq!(stage.notes().await, [""; 0], "{case}");
        assert_eq!(prepared(&stage.databases, In::Audit).await, [""; 0]);
        stage.nothing_is_stuck().await;
    }
}
