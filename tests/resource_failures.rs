//! Resources that refuse, hang or panic during a settlement.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rocket::http::Status;
use rocket::request::FromParam;
use rocket::serde::json::Value;
use rocket::{State, post, routes};
use rocket_tx::tx::{Phase, Resource, SettleContext};
use rocket_tx::{Begin, Error, Outstanding, Settlement};

use crate::support::stage::note;
use crate::support::{Audit, Backend, Main, Stage, eventually};

/// A resource in the phase of databases that misbehaves at one step of the settlement.
struct Awkward {
    at: String,
    then: String,
}

/// Parses a parameter such as `commit-hang`: the step, and the misbehaviour at that step.
impl<'a> FromParam<'a> for Awkward {
    type Error = &'a str;

    fn from_param(param: &'a str) -> Result<Self, &'a str> {
        let (at, then) = param.split_once('-').ok_or(param)?;
        Ok(Self {
            at: at.to_owned(),
            then: then.to_owned(),
        })
    }
}

#[rocket::async_trait]
impl Resource for Awkward {
    fn name(&self) -> Cow<'_, str> {
        "awkward".into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.step("prepare").await
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.step("commit").await
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.step("rollback").await
    }
}

impl Awkward {
    async fn step(&self, step: &str) -> Result<(), Error> {
        if self.at != step {
            return Ok(());
        }
        match self.then.as_str() {
            "hang" => std::future::pending().await,
            "panic" => panic!("as requested"),
            _ => Err(Error::Conflict("as requested".into())),
        }
    }
}

/// Counts how often each hook has run.
#[derive(Default)]
struct Ran {
    after_commit: AtomicUsize,
    after_rollback: AtomicUsize,
}

impl Ran {
    fn counts(&self) -> (usize, usize) {
        (
            self.after_commit.load(Ordering::SeqCst),
            self.after_rollback.load(Ordering::SeqCst),
        )
    }
}

/// Writes to both databases. The awkward resource joins before or after them.
#[post("/<awkward>/<place>?<fail>")]
async fn awkward(
    awkward: Awkward,
    place: &str,
    fail: bool,
    outstanding: &Outstanding,
    ran: &State<Arc<Ran>>,
    main: Begin<Main>,
    audit: Begin<Audit>,
) -> Result<(Status, ()), Error> {
    let (committed, rolled_back) = (Arc::clone(ran), Arc::clone(ran));
    outstanding.after_commit(async move {
        committed.after_commit.fetch_add(1, Ordering::SeqCst);
    })?;
    outstanding.after_rollback(async move {
        rolled_back.after_rollback.fetch_add(1, Ordering::SeqCst);
    })?;
    let (first, last) = match place {
        "first" => (Some(awkward), None),
        _ => (None, Some(awkward)),
    };
    if let Some(awkward) = first {
        outstanding.join(awkward)?;
    }
    note(&mut *main.begin().await?, "written").await?;
    note(&mut *audit.begin().await?, "written").await?;
    if let Some(awkward) = last {
        outstanding.join(awkward)?;
    }
    let status = match fail {
        true => Status::Conflict,
        false => Status::Created,
    };
    Ok((status, ()))
}

async fn stage(backend: Backend) -> (Stage, Arc<Ran>) {
    let ran = Arc::new(Ran::default());
    let managed = Arc::clone(&ran);
    let stage = Stage::with(backend, &[("settle_timeout", "\"400ms\"")], |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![awkward])
            .attach(Settlement::new())
    })
    .await;
    (stage, ran)
}

async fn a_failure_before_any_commit_rolls_everything_back(backend: Backend) {
    let (stage, ran) = stage(backend).await;
    for place in ["first", "last"] {
        for (then, status, problem) in [
            ("hang", 503, "settle-timeout"),
            ("panic", 500, "panicked"),
            ("refuse", 409, "conflict"),
        ] {
            let response = stage.send(&format!("POST /prepare-{then}/{place}")).await;
            assert_eq!(
                response.summary(),
                (status, Some("rolled-back")),
                "{then} {place}"
            );
            assert_eq!(response.kind(), problem);
            assert_eq!(response.header("retry-after").is_some(), status == 503);
            assert_eq!(stage.notes().await, [""; 0], "{then} {place}");
            stage.nothing_is_stuck().await;
        }
    }
    eventually("the hooks have run", async || ran.counts() == (0, 6)).await;
}

async fn a_first_commit_that_is_refused_rolls_everything_back(backend: Backend) {
    let (stage, ran) = stage(backend).await;
    let response = stage.send("POST /commit-refuse/first").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert_eq!(stage.notes().await, [""; 0]);
    stage.nothing_is_stuck().await;
    eventually("the hook has run", async || ran.counts() == (0, 1)).await;
}

async fn a_later_commit_that_is_refused_is_reported_as_partial(backend: Backend) {
    let (stage, ran) = stage(backend).await;
    let response = stage.send("POST /commit-refuse/last").await;
    assert_eq!(response.summary(), (500, Some("partial")));
    assert_eq!(response.kind(), "partial");
    let detail = response.json::<Value>()["detail"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        detail.contains("committed in main, audit, but not in awkward"),
        "{detail}"
    );
    assert_eq!(stage.notes().await, ["written", "written"]);
    stage.nothing_is_stuck().await;
    stage.databases.empty().await;

    // A later request has a certain outcome, and its hook runs. The hooks of the earlier request,
    // whose outcome is partial, have not run.
    let response = stage.send("POST /rollback-refuse/last?fail=true").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    eventually("the later hook has run", async || ran.counts() == (0, 1)).await;
}

async fn a_commit_without_a_reply_is_reported_as_unknown(backend: Backend) {
    let (stage, ran) = stage(backend).await;
    for (then, place, rest) in [
        ("hang", "first", &[][..]),
        ("hang", "last", &["written", "written"]),
        ("panic", "first", &[]),
    ] {
        let response = stage.send(&format!("POST /commit-{then}/{place}")).await;
        assert_eq!(response.summary(), (500, Some("unknown")), "{then} {place}");
        assert_eq!(response.kind(), "unknown");
        assert!(
            response.body.contains("check before you retry"),
            "{}",
            response.body
        );
        assert_eq!(stage.notes().await, rest, "{then} {place}");
        stage.nothing_is_stuck().await;
        stage.databases.empty().await;
    }
    assert_eq!(
        ran.counts(),
        (0, 0),
        "no hook runs if the outcome is unknown"
    );
}

async fn a_rollback_is_tried_on_every_resource_even_if_one_fails(backend: Backend) {
    let (stage, _) = stage(backend).await;
    for then in ["hang", "panic", "refuse"] {
        let response = stage
            .send(&format!("POST /rollback-{then}/first?fail=true"))
            .await;
        assert_eq!(response.summary(), (409, Some("rolled-back")), "{then}");
        assert_eq!(stage.notes().await, [""; 0], "{then}");
        stage.nothing_is_stuck().await;
    }
}

on_each_backend!(
    a_failure_before_any_commit_rolls_everything_back,
    a_first_commit_that_is_refused_rolls_everything_back,
    a_later_commit_that_is_refused_is_reported_as_partial,
    a_commit_without_a_reply_is_reported_as_unknown,
    a_rollback_is_tried_on_every_resource_even_if_one_fails,
);
