//! A decider that is stopped for longer than recovery waits, while two other processes recover.

use rocket::futures::future::join_all;

use super::servers::{DECIDES, PATIENT, SHORT, Servers, in_doubt, lists, post, titles};
use super::*;
use crate::support::{Break, eventually};

const LATE: [&str; 1] = ["late"];

/// The process is stopped between PREPARE TRANSACTION and its decision.
#[rocket::async_test]
async fn a_stopped_process_learns_that_others_have_decided_to_abort() {
    let servers = Servers::of(Pair::Servers).await;
    let late = servers.service(PATIENT).await;
    let prepare = (In::Audit, "PREPARE TRANSACTION", Break::HoldReply);
    let response = servers.post_into(prepare, &late, "late").await;
    late.signal("STOP");
    servers.at(In::Audit).proxy.deliver();
    assert_eq!(prepared(&servers.databases, In::Audit).await.len(), 1);

    let one = servers.service(SHORT).await;
    let other = servers.service(SHORT).await;
    servers.nothing_is_prepared(In::Audit).await;
    late.signal("CONT");
    let response = response.await.unwrap();
    assert_eq!(response.summary(), (503, Some("rolled-back")));
    assert_eq!(response.kind(), "decided-to-abort");
    assert_eq!(titles(&servers.databases).await, [[""; 0], []]);
    servers.each_works(&[&late, &one, &other]).await;
    assert_eq!(titles(&servers.databases).await, [["works"; 3]; 2]);
    assert_eq!(prepared(&servers.databases, In::Audit).await, [""; 0]);
}

/// The process has the write lock of the file, so the others wait. They look for what is prepared at
/// intervals of 30 s on average, so the pairs are tested at the same time.
#[rocket::async_test]
async fn a_stopped_process_that_holds_the_file_is_waited_for() {
    let pairs = [Pair::MainOnFile, Pair::AuditOnFile];
    join_all(pairs.map(the_holder_of_the_file_is_waited_for)).await;
}

async fn the_holder_of_the_file_is_waited_for(pair: Pair) {
    let (decider, participant) = pair.roles();
    let servers = Servers::of(pair).await;
    // A launch writes to the file too.
    let one = servers.service(SHORT).await;
    let other = servers.service(SHORT).await;
    let late = servers.service(PATIENT).await;
    let prepare = (participant, "PREPARE TRANSACTION", Break::HoldReply);
    let response = servers.post_into(prepare, &late, "late").await;
    late.signal("STOP");
    servers.at(participant).proxy.deliver();
    let names = prepared(&servers.databases, participant).await;
    for service in [&one, &other] {
        lists(service, &names[0], participant, decider).await;
    }
    assert_eq!(prepared(&servers.databases, participant).await, names);
    late.signal("CONT");
    let response = response.await.unwrap();
    assert_eq!(response.summary(), (201, Some("committed")), "{pair:?}");
    servers.nothing_is_prepared(participant).await;
    assert_eq!(titles(&servers.databases).await, [LATE; 2], "{pair:?}");
}

/// The session that decides is stopped before it executes its decision.
#[rocket::async_test]
async fn a_stopped_session_that_has_not_decided_is_rolled_back() {
    let servers = Servers::of(Pair::Servers).await;
    let late = servers.service(PATIENT).await;
    let decide = (In::Main, DECIDES, Break::Stall);
    let response = servers.post_into(decide, &late, "late").await;
    let main = servers.at(In::Main);
    main.cluster.signal_backends("STOP");
    main.proxy.deliver();

    let one = servers.service(SHORT).await;
    let other = servers.service(SHORT).await;
    servers.nothing_is_prepared(In::Audit).await;
    main.cluster.signal_backends("CONT");
    let response = response.await.unwrap();
    assert_eq!(response.summary(), (503, Some("rolled-back")));
    assert_eq!(response.kind(), "decided-to-abort");
    assert_eq!(titles(&servers.databases).await, [[""; 0], []]);
    servers.each_works(&[&late, &one, &other]).await;
}

/// The session that decides is stopped after it has inserted its decision, before its COMMIT.
#[rocket::async_test]
async fn a_stopped_session_that_has_inserted_its_decision_is_waited_for() {
    const WAIT: &str = "\
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END';
        CREATE TRIGGER wait AFTER INSERT ON rocket_tx_decisions
            FOR EACH ROW WHEN (NEW.decision = 'commit') EXECUTE FUNCTION wait()";
    const WAITS: &str = "SELECT pid::text FROM pg_stat_activity \
                         WHERE datname = current_database() AND wait_event = 'advisory'";

    let servers = Servers::of(Pair::Servers).await;
    let late = servers.service(PATIENT).await;
    servers.databases.execute(In::Main, WAIT).await;
    let mut lock = servers.databases.postgres(In::Main).await;
    let locked = sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut lock);
    locked.await.unwrap();
    let response = post(&late, "late");
    eventually("the decision is inserted", async || {
        servers.databases.texts(In::Main, WAITS).await.len() == 1
    })
    .await;
    let main = servers.at(In::Main);
    let decides = |title: &str| title.contains("SELECT waiting");
    main.cluster.signal_processes("STOP", decides);
    lock.close().await.unwrap();

    let names = prepared(&servers.databases, In::Audit).await;
    let one = servers.service(SHORT).await;
    let other = servers.service(SHORT).await;
    for service in [&one, &other] {
        lists(service, &names[0], In::Audit, In::Main).await;
    }
    assert_eq!(prepared(&servers.databases, In::Audit).await, names);
    main.cluster.signal_backends("CONT");
    let response = response.await.unwrap();
    assert_eq!(response.summary(), (201, Some("committed")));
    servers.nothing_is_prepared(In::Audit).await;
    assert_eq!(titles(&servers.databases).await, [LATE; 2]);
    servers.each_works(&[&late, &one, &other]).await;
}

/// The server has received the decisions of three requests when all its processes are stopped. Two
/// of the services give up and recover.
#[rocket::async_test]
async fn a_stopped_server_decides_each_request_once() {
    // Longer than it takes to send three requests.
    const SOON: (&str, &str) = ("ROCKET_SETTLE_TIMEOUT", "\"6s\"");

    let servers = Servers::of(Pair::Servers).await;
    let (main, audit) = (servers.at(In::Main), servers.at(In::Audit));
    let services = [
        servers.service(PATIENT).await,
        servers.service(SOON).await,
        servers.service(SOON).await,
    ];
    let mut responses = Vec::new();
    for (service, title) in services.iter().zip(["0", "1", "2"]) {
        let prepare = (In::Audit, "PREPARE TRANSACTION", Break::HoldReply);
        responses.push(servers.post_into(prepare, service, title).await);
    }
    let names = prepared(&servers.databases, In::Audit).await;
    assert_eq!(names.len(), 3);
    main.cluster.freeze();
    audit.proxy.deliver();
    for service in &services[1..] {
        eventually("all are in doubt", async || {
            in_doubt(service).await.len() == 3
        })
        .await;
    }
    assert_eq!(prepared(&servers.databases, In::Audit).await, names);

    main.cluster.thaw();
    servers.nothing_is_prepared(In::Audit).await;
    let mut expected = Vec::new();
    for (number, response) in responses.into_iter().enumerate() {
        let response = response.await.unwrap();
        match response.summary() {
            (201, Some("committed")) => expected.push((number, true)),
            (503, Some("rolled-back")) => expected.push((number, false)),
            (500, Some("unknown")) if number > 0 => {}
            _ => panic!("{number}: {response:?}"),
        }
    }
    let [in_main, in_audit] = titles(&servers.databases).await;
    assert_eq!(in_main, in_audit);
    for (number, is_stored) in expected {
        assert_eq!(in_main.contains(&number.to_string()), is_stored, "{number}");
    }
    let [first, second, third] = &services;
    servers.each_works(&[first, second, third]).await;
}
