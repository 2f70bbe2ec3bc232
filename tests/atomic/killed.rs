//! A process that is killed during its recovery. The next process finishes what it has left.

use super::servers::{
    ASKS, FORGETS, PATIENT, SHORT, Servers, decisions, make_decisions_old, titles,
};
use super::*;
use crate::support::{Break, Service, eventually};

/// When the process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The server never receives the statement.
    Before,
    /// The server has executed the statement.
    After,
    /// The server receives the statement when the next process has finished.
    Late,
}

impl Moment {
    const ALL: [Self; 3] = [Self::Before, Self::After, Self::Late];

    fn how(self) -> Break {
        match self {
            Self::Before | Self::Late => Break::Stall,
            Self::After => Break::StallReply,
        }
    }
}

/// Where the previous process has crashed, and whether its request is committed.
const CRASHES: [(&str, bool); 2] = [("before-decision", false), ("between-commits", true)];

/// Kills a process when its trap has sprung. Returns the sessions of which the server does not
/// learn that they have ended.
async fn killed(
    mut service: Service,
    servers: &Servers,
    database: In,
    moment: Moment,
) -> Vec<String> {
    let proxy = &servers.at(database).proxy;
    eventually("the statement was sent", async || proxy.has_sprung()).await;
    service.signal("KILL");
    service.ended().await;
    if moment != Moment::Late {
        proxy.cut();
    }
    sessions(servers, database).await
}

async fn sessions(servers: &Servers, database: In) -> Vec<String> {
    const SESSIONS: &str = "SELECT pid::text FROM pg_stat_activity \
                            WHERE datname = current_database() AND pid <> pg_backend_pid()";

    servers.databases.texts(database, SESSIONS).await
}

/// Forwards what was withheld, and waits until the session of the killed process has executed it.
async fn deliver(servers: &Servers, database: In, left: &[String]) {
    servers.at(database).proxy.deliver();
    eventually("the session has ended", async || {
        let sessions = sessions(servers, database).await;
        left.iter().all(|session| !sessions.contains(session))
    })
    .await;
}

/// Kills the recovery of a process at `statement`, after each crash at each moment.
async fn recovery_is_killed(pair: Pair, at: impl Fn(bool) -> (In, &'static str)) {
    let (_, participant) = pair.roles();
    let servers = Servers::of(pair).await;
    let mut expected = Vec::new();
    for (crash, is_committed) in CRASHES {
        for moment in Moment::ALL {
            let title = format!("{crash}-{moment:?}").to_lowercase();
            let mut crashes = servers.service(PATIENT).await;
            crashes.crash(&title, &format!("crash={crash}")).await;
            assert_eq!(prepared(&servers.databases, participant).await.len(), 1);
            let (database, statement) = at(is_committed);
            let proxy = &servers.at(database).proxy;
            proxy.set(statement, moment.how());
            let left = killed(servers.service(SHORT).await, &servers, database, moment).await;

            let service = servers.service(SHORT).await;
            servers.nothing_is_prepared(participant).await;
            if moment == Moment::Late {
                deliver(&servers, database, &left).await;
            }
            if is_committed {
                expected.push(title.clone());
                expected.sort();
            }
            let stored = titles(&servers.databases).await;
            assert_eq!(stored, [&*expected, &*expected], "{pair:?} {title}");
            assert_eq!(prepared(&servers.databases, participant).await, [""; 0]);
            service.stop().await;
        }
    }
    let service = servers.service(SHORT).await;
    servers.each_works(&[&service]).await;
    service.stop().await;
}

#[rocket::async_test]
async fn recovery_that_is_killed_when_it_asks_the_decider_is_repeated() {
    recovery_is_killed(Pair::Servers, |_| (In::Main, ASKS)).await;
}

#[rocket::async_test]
async fn recovery_that_is_killed_when_it_finishes_is_repeated() {
    for pair in [Pair::Servers, Pair::MainOnFile] {
        recovery_is_killed(pair, |is_committed| match is_committed {
            true => (In::Audit, "COMMIT PREPARED"),
            false => (In::Audit, "ROLLBACK PREPARED"),
        })
        .await;
    }
}

/// The next process also has a decision of the same age that is still needed.
#[rocket::async_test]
async fn forgetting_that_is_killed_is_repeated() {
    let servers = Servers::of(Pair::Servers).await;
    let mut expected = Vec::new();
    for moment in Moment::ALL {
        let [forgotten, needed] = ["forgotten", "needed"].map(|it| format!("{it}-{moment:?}"));
        let [forgotten, needed] = [forgotten.to_lowercase(), needed.to_lowercase()];
        let service = servers.service(SHORT).await;
        servers.at(In::Main).proxy.set(FORGETS, moment.how());
        let commit = (In::Audit, "COMMIT PREPARED", Break::Before);
        let response = servers.post_into(commit, &service, &forgotten).await;
        let response = response.await.unwrap();
        assert_eq!(response.header("transaction-pending"), Some("audit"));
        let left = killed(service, &servers, In::Main, moment).await;
        let decided = decisions(&servers.databases, In::Main).await;
        assert_eq!(decided.is_empty(), moment == Moment::After);

        let mut crashes = servers.service(PATIENT).await;
        crashes.crash(&needed, "crash=between-commits").await;
        make_decisions_old(&servers.databases, In::Main).await;
        let service = servers.service(SHORT).await;
        eventually("all decisions are forgotten", async || {
            decisions(&servers.databases, In::Main).await.is_empty()
        })
        .await;
        if moment == Moment::Late {
            deliver(&servers, In::Main, &left).await;
        }
        assert_eq!(prepared(&servers.databases, In::Audit).await, [""; 0]);
        expected.extend([forgotten, needed]);
        expected.sort();
        let stored = titles(&servers.databases).await;
        assert_eq!(stored, [&*expected, &*expected], "{moment:?}");
        service.stop().await;
    }
}

#[rocket::async_test]
async fn an_old_decision_is_kept_as_long_as_it_is_needed() {
    const LEFT_OVER: &str = "INSERT INTO rocket_tx_decisions (id, decision, participants) \
                             VALUES ('00000000000000000000000000000007', 'commit', '')";

    let servers = Servers::of(Pair::Servers).await;
    let mut service = servers.service(PATIENT).await;
    service.crash("needed", "crash=between-commits").await;
    servers.databases.execute(In::Main, LEFT_OVER).await;
    make_decisions_old(&servers.databases, In::Main).await;
    // It deletes old decisions, and does not finish what another process has prepared.
    let service = servers.service(PATIENT).await;
    eventually("the other decision is forgotten", async || {
        decisions(&servers.databases, In::Main).await.len() < 2
    })
    .await;
    assert_eq!(prepared(&servers.databases, In::Audit).await.len(), 1);
    service.stop().await;
    let service = servers.service(SHORT).await;
    servers.nothing_is_prepared(In::Audit).await;
    assert_eq!(titles(&servers.databases).await, [["needed"]; 2]);
    service.stop().await;
}
