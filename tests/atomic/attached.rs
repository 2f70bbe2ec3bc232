//! Services with other databases than two that commit atomically: a single one, a standby, one whose
//! migrations another program has locked.

use rocket::local::asynchronous::Client;
use rocket::routes;
use rocket_tx::db::{self, UrlPool};
use rocket_tx::rocket_db_pools::{self, Database};
use sqlx::migrate::Migrate;

use super::recovery::left_behind;
use super::refusals::elsewhere;
use super::*;
use crate::support::{eventually, stage::figment};

#[derive(Database)]
#[database("replica")]
struct Replica(UrlPool);

#[rocket::async_test]
async fn required_also_holds_with_one_attached_database() {
    let databases = Pair::Servers.databases().await;
    let settings = [("atomic_commit", "\"required\"")];
    let rocket = rocket::custom(figment(&databases, &settings))
        .attach(db::init::<Main>())
        .attach(Settlement::new())
        .mount("/", routes![elsewhere]);
    let client = Client::tracked(rocket).await.unwrap();
    let response = client.post("/elsewhere").dispatch().await;
    assert_eq!(response.status(), Status::InternalServerError);
    let outcome = response.headers().get_one("transaction-outcome");
    assert_eq!(outcome, Some("rolled-back"));
    assert_eq!(databases.notes(In::Main).await, [""; 0]);
}

/// A standby has the id of its primary as a decider.
#[rocket::async_test]
async fn a_standby_of_the_decider_does_not_decide() {
    const SOON: [(&str, &str); 1] = [("settle_timeout", "\"1s\"")];
    const OLD: &str = "INSERT INTO rocket_tx_decisions (id, decision, participants, decided_at) \
         VALUES (md5('old'), 'abort', '', now() - interval '1 hour')";

    let cluster = Cluster::start().await;
    let databases = Databases::on_cluster(&cluster).await;
    let standby = cluster.standby().await;
    let with_replica =
        figment(&databases, &SOON).merge(("databases.replica.url", standby.url("main")));
    for is_first in [true, false] {
        let rocket = rocket::custom(with_replica.clone());
        let rocket = match is_first {
            true => rocket.attach(db::init::<Replica>()),
            false => rocket,
        };
        let rocket = rocket
            .attach(db::init::<Main>())
            .attach(db::init::<Audit>());
        let rocket = match is_first {
            true => rocket,
            false => rocket.attach(db::init::<Replica>()),
        };
        let client = Client::tracked(rocket.attach(Settlement::new()))
            .await
            .unwrap();
        left_behind(&databases).await;
        databases.execute(In::Main, OLD).await;
        eventually("nothing is prepared", async || {
            prepared(&databases, In::Audit).await.is_empty()
        })
        .await;
        eventually("the old decision is deleted", async || {
            let old = "SELECT id FROM rocket_tx_decisions WHERE id = md5('old')";
            databases.texts(In::Main, old).await.is_empty()
        })
        .await;
        client.rocket().shutdown().notify();
    }
}

/// Another service migrates its tables in the same database. sqlx locks the migrations of a
/// database as a whole.
#[rocket::async_test]
async fn a_launch_does_not_wait_for_the_migrations_of_another_service() {
    let databases = Pair::Servers.databases().await;
    let launch = async || {
        let rocket = rocket::custom(figment(&databases, &[]))
            .attach(db::init::<Main>())
            .attach(db::init::<Audit>())
            .attach(Settlement::new())
            .mount("/", routes![both]);
        Client::tracked(rocket).await.unwrap()
    };
    let mut other = databases.postgres(In::Audit).await;
    Migrate::lock(&mut other).await.unwrap();
    // The tables are not there yet. So the databases commit one after the other.
    let client = launch().await;
    let status = client.post("/both").dispatch().await.status();
    assert_eq!(status, Status::Created);
    drop(client);
    Migrate::unlock(&mut other).await.unwrap();
    drop(launch().await);

    Migrate::lock(&mut other).await.unwrap();
    drop(launch().await);
    let tables = "SELECT id FROM rocket_tx_decider";
    assert_eq!(databases.texts(In::Audit, tables).await.len(), 1);
}
