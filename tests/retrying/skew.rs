//! Write skew: each of two requests reads what the other one changes. At SERIALIZABLE Postgres lets
//! only one of them commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rocket::http::Status;
use rocket::tokio::task::JoinSet;
use rocket::{State, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::{Begin, Error, Outstanding, Serializable, Settlement, with_backend};

use crate::support::{Backend, Databases, In, Main, Stage, eventually};

const SHIFTS: i64 = 8;
const DOCTORS: i64 = 3;
const ROUNDS: usize = 15;

const TABLE: &str = "\
    CREATE TABLE on_call (shift BIGINT, doctor BIGINT, PRIMARY KEY (shift, doctor));";
const EVERYBODY: &str = "\
    INSERT INTO on_call SELECT shift, doctor FROM generate_series(1, 8) shift, generate_series(1, 3) doctor \
    ON CONFLICT DO NOTHING";

/// How often a hook has run.
type Hooks = Arc<AtomicUsize>;

/// Takes a doctor off call, unless nobody would be left.
async fn leave(tx: &mut UrlConnection, shift: i64, doctor: i64) -> Result<bool, Error> {
    with_backend!(tx, |db| {
        let count = "SELECT count(*) FROM on_call WHERE shift = $1";
        let count: i64 = sqlx::query_scalar(count)
            .bind(shift)
            .fetch_one(&mut *db)
            .await?;
        if count < 2 {
            return Ok(false);
        }
        let delete = "DELETE FROM on_call WHERE shift = $1 AND doctor = $2";
        let delete = sqlx::query(delete).bind(shift).bind(doctor);
        delete.execute(&mut *db).await?;
    });
    Ok(true)
}

fn count(outstanding: &Outstanding, hooks: &Hooks) -> Result<(), Error> {
    let hooks = Arc::clone(hooks);
    outstanding.after_commit(async move {
        hooks.fetch_add(1, Ordering::SeqCst);
    })
}

fn status(has_left: bool) -> Status {
    match has_left {
        true => Status::NoContent,
        false => Status::Conflict,
    }
}

#[post("/once/<shift>/<doctor>")]
async fn once(
    shift: i64,
    doctor: i64,
    main: Begin<Main, Serializable>,
    outstanding: &Outstanding,
    hooks: &State<Hooks>,
) -> Result<Status, Error> {
    let mut tx = main.begin().await?;
    count(outstanding, hooks)?;
    Ok(status(leave(&mut tx, shift, doctor).await?))
}

#[post("/retrying/<shift>/<doctor>")]
async fn retrying(
    shift: i64,
    doctor: i64,
    main: Begin<Main, Serializable>,
    outstanding: &Outstanding,
    hooks: &State<Hooks>,
) -> Result<Status, Error> {
    let work = main.retrying(async |mut tx| {
        count(outstanding, hooks)?;
        leave(&mut tx, shift, doctor).await
    });
    Ok(status(work.await?))
}

/// All doctors of all shifts leave at once, several times. Returns how many requests were refused
/// with a 503, and how many there were.
async fn load(stage: &Stage, hooks: &Hooks, path: &'static str) -> (usize, usize) {
    let (mut committed, mut busy, mut all) = (0, 0, 0);
    hooks.store(0, Ordering::SeqCst);
    for _ in 0..ROUNDS {
        stage.databases.execute(In::Main, EVERYBODY).await;
        let mut requests = JoinSet::new();
        for (shift, doctor) in
            (1..=SHIFTS).flat_map(|shift| (1..=DOCTORS).map(move |doctor| (shift, doctor)))
        {
            let http = stage.http.clone();
            let line = format!("POST /{path}/{shift}/{doctor}");
            requests.spawn(async move { http.send(&line).await });
        }
        for response in requests.join_all().await {
            all += 1;
            match response.summary() {
                (204, Some("committed")) => committed += 1,
                (409, Some("rolled-back")) => {}
                (503, Some("rolled-back")) => {
                    assert_eq!(response.kind(), "busy");
                    busy += 1;
                }
                other => panic!("{other:?}: {}", response.body),
            }
        }
        let left = "SELECT DISTINCT shift::text FROM on_call";
        let left = stage.databases.texts(In::Main, left).await;
        assert_eq!(
            left.len(),
            usize::try_from(SHIFTS).unwrap(),
            "{path}: {left:?}"
        );
    }
    eventually("all hooks have run", async || {
        hooks.load(Ordering::SeqCst) >= committed
    })
    .await;
    stage.nothing_is_stuck().await;
    assert_eq!(hooks.load(Ordering::SeqCst), committed, "{path}");
    (busy, all)
}

#[rocket::async_test]
async fn at_serializable_the_invariant_holds_and_fewer_requests_are_refused() {
    let databases = Databases::with_tables(Backend::Postgres).await;
    databases.execute(In::Main, TABLE).await;
    let hooks = Hooks::default();
    let managed = Arc::clone(&hooks);
    let settings = [("databases.main.max_connections", "16")];
    let stage = Stage::on(databases, &settings, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![once, retrying])
            .attach(Settlement::new())
    })
    .await;
    // First, so that nothing has warned the pool of conflicts.
    let (retrying, same) = load(&stage, &hooks, "retrying").await;
    let (once, all) = load(&stage, &hooks, "once").await;
    assert_eq!(all, same);
    println!("refused with a 503: {once} of {all} without retries, {retrying} with retries");
    assert!(once > 0, "the load has no conflicts");
    assert!(
        retrying * 10 < all && retrying * 5 < once,
        "{retrying} of {all}, {once} without retries"
    );
}
