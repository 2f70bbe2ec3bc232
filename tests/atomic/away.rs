//! A participant that is away after the decision, and comes back later.

use std::time::Duration;

use super::servers::{SHORT, Servers, decisions, make_decisions_old, titles};
use super::*;
use crate::history::variable;
use crate::support::{Break, eventually};

/// The server of the participant is killed before COMMIT PREPARED arrives. It is started again after
/// `ATOMIC_AWAY` seconds.
#[rocket::async_test]
async fn a_participant_that_comes_back_is_committed() {
    const COMMIT: &str = "COMMIT PREPARED";

    let away = Duration::from_secs(variable("ATOMIC_AWAY", 3));
    for pair in [Pair::Servers, Pair::MainOnFile] {
        let mut servers = Servers::of(pair).await;
        let service = servers.service(SHORT).await;
        let commit = (In::Audit, COMMIT, Break::Stall);
        let response = servers.post_into(commit, &service, "waits").await;
        servers.at_mut(In::Audit).cluster.kill().await;
        let response = response.await.unwrap();
        assert_eq!(response.summary(), (201, Some("committed")), "{pair:?}");
        assert_eq!(response.header("transaction-pending"), Some("audit"));

        // Also an old decision is kept, because it is unknown what the participant has prepared.
        make_decisions_old(&servers.databases, In::Main).await;
        rocket::tokio::time::sleep(away).await;
        let failed = "could not look for prepared transactions";
        let mut stored = 1;
        eventually("two passes have not reached the participant", async || {
            stored = decisions(&servers.databases, In::Main).await.len();
            stored == 0 || service.log().matches(failed).count() >= 2
        })
        .await;
        assert_eq!(stored, 1, "{pair:?}: the decision was forgotten");
        servers.at_mut(In::Audit).cluster.restart().await;
        servers.nothing_is_prepared(In::Audit).await;
        assert_eq!(titles(&servers.databases).await, [["waits"]; 2], "{pair:?}");
        eventually("the decision is forgotten", async || {
            decisions(&servers.databases, In::Main).await.is_empty()
        })
        .await;
        servers.each_works(&[&service]).await;
        service.stop().await;
    }
}
