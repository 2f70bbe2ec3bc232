//! A connection breaks during an atomic commit.

use super::*;
use crate::support::{Break, Newcomers, Proxy, eventually};

/// A stage that reaches `through` by a proxy.
async fn stage_by_proxy(pair: Pair, through: In) -> (Stage, Proxy) {
    let mut databases = pair.databases().await;
    let proxy = databases.by_proxy(through).await;
    let (stage, _) = stage(databases).await;
    (stage, proxy)
}

async fn nothing_is_prepared(stage: &Stage) {
    for database in [In::Main, In::Audit] {
        eventually("nothing is prepared", async || {
            prepared(&stage.databases, database).await.is_empty()
        })
        .await;
    }
    eventually("nothing is in doubt", async || {
        stage.live.in_doubt().is_empty()
    })
    .await;
}

/// Returns how many decisions are stored.
async fn decisions(databases: &Databases, decider: In) -> usize {
    let decisions = "SELECT id FROM rocket_tx_decisions";
    databases.texts(decider, decisions).await.len()
}

#[rocket::async_test]
async fn a_participant_that_is_lost_after_the_decision_is_committed_later() {
    for pair in Pair::ALL {
        let (decider, participant) = pair.roles();
        for kind in [Break::Before, Break::After, Break::Stall] {
            let (stage, proxy) = stage_by_proxy(pair, participant).await;
            proxy.set("COMMIT PREPARED", kind);
            let response = stage.send("POST /both").await;
            let case = format!("{pair:?} {kind:?}: {}", response.body);
            assert_eq!(response.summary(), (201, Some("committed")), "{case}");
            assert_eq!(
                response.header("transaction-pending"),
                Some(name(participant)),
                "{case}"
            );
            assert!(proxy.has_sprung(), "{case}");
            assert_eq!(stage.databases.notes(decider).await, ["written"], "{case}");
            nothing_is_prepared(&stage).await;
            assert_eq!(stage.notes().await, ["written", "written"], "{case}");
            eventually("the decision is forgotten", async || {
                decisions(&stage.databases, decider).await == 0
            })
            .await;
            stage.nothing_is_stuck().await;
        }
    }
}

#[rocket::async_test]
async fn a_participant_that_is_lost_while_it_prepares_is_rolled_back() {
    for pair in Pair::ALL {
        let (_, participant) = pair.roles();
        for kind in [Break::Before, Break::After, Break::Stall] {
            let (stage, proxy) = stage_by_proxy(pair, participant).await;
            proxy.set("PREPARE TRANSACTION", kind);
            let response = stage.send("POST /both").await;
            let case = format!("{pair:?} {kind:?}: {}", response.body);
            assert_eq!(response.summary(), (503, Some("rolled-back")), "{case}");
            assert!(proxy.has_sprung(), "{case}");
            nothing_is_prepared(&stage).await;
            assert_eq!(stage.notes().await, [""; 0], "{case}");
            stage.nothing_is_stuck().await;
            // Nothing holds a lock: the same row can be written.
            let response = stage.send("POST /both").await;
            assert_eq!(response.summary(), (201, Some("committed")), "{case}");
        }
    }
}

#[rocket::async_test]
async fn a_decider_whose_reply_is_lost_is_queried() {
    for (kind, expected, notes) in [
        (Break::Before, (503, Some("rolled-back")), 0),
        (Break::After, (201, Some("committed")), 2),
    ] {
        let (stage, proxy) = stage_by_proxy(Pair::Servers, In::Main).await;
        proxy.set("COMMIT", kind);
        let response = stage.send("POST /both").await;
        assert_eq!(response.summary(), expected, "{kind:?}: {}", response.body);
        assert!(proxy.has_sprung());
        assert_eq!(response.header("transaction-pending"), None);
        nothing_is_prepared(&stage).await;
        assert_eq!(stage.notes().await.len(), notes, "{kind:?}");
        stage.nothing_is_stuck().await;
    }
}

#[rocket::async_test]
async fn what_a_lost_decider_has_not_decided_stays_in_doubt_until_it_is_back() {
    for kind in [Break::Stall, Break::StallReply] {
        let (stage, proxy) = stage_by_proxy(Pair::Servers, In::Main).await;
        let both = async {
            proxy.set("COMMIT", kind);
            stage.send("POST /both").await
        };
        let lost = async {
            eventually("COMMIT was sent", async || proxy.has_sprung()).await;
            proxy.newcomers(Newcomers::Ignored).await;
            proxy.freeze();
        };
        let (response, ()) = rocket::futures::future::join(both, lost).await;
        assert_eq!(
            response.summary(),
            (500, Some("unknown")),
            "{kind:?}: {}",
            response.body
        );
        eventually("it is reported as in doubt", async || {
            !stage.live.in_doubt().is_empty()
        })
        .await;
        let in_doubt = stage.live.in_doubt();
        assert_eq!(in_doubt.len(), 1);
        assert_eq!(in_doubt[0].database, "audit");
        assert_eq!(in_doubt[0].decider.as_deref(), Some("main"));
        let names = prepared(&stage.databases, In::Audit).await;
        assert_eq!(names, [in_doubt[0].name.clone()]);

        proxy.cut();
        proxy.newcomers(Newcomers::Served).await;
        nothing_is_prepared(&stage).await;
        let notes = if kind == Break::StallReply { 2 } else { 0 };
        assert_eq!(stage.notes().await.len(), notes, "{kind:?}");
        stage.nothing_is_stuck().await;
    }
}
