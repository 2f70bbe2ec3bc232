//! Recovery finishes what other processes have prepared.

use std::collections::HashSet;

use rocket::serde::json::Value;

use super::servers::SHORT;
use super::*;
use crate::support::{Break, Newcomers, Service, eventually};

/// Recovery then finishes what is older than two seconds.
const SOON: (&str, &str) = ("settle_timeout", "\"1s\"");

async fn restarted(databases: Databases, settings: &[(&str, &str)]) -> Stage {
    let settings = [settings, &[SOON]].concat();
    Stage::on(databases, &settings, |rocket| {
        rocket.mount("/", routes![both]).attach(Settlement::new())
    })
    .await
}

/// Databases with the tables of decisions.
async fn set_up(databases: Databases) -> Databases {
    restarted(databases, &[]).await.close().await
}

/// Prepares a transaction in `audit`, as a process that has died before its decision did. Returns
/// its name.
pub async fn left_behind(databases: &Databases) -> String {
    let decider = databases
        .texts(In::Main, "SELECT id FROM rocket_tx_decider")
        .await
        .remove(0);
    left_behind_by(&decider, databases).await
}

async fn left_behind_by(decider: &str, databases: &Databases) -> String {
    let gid = format!("rtx:{decider}:{:032x}:0", fastrand::u128(..));
    let text = &gid[40..];
    let sql =
        format!("BEGIN; INSERT INTO notes (text) VALUES ('{text}'); PREPARE TRANSACTION '{gid}'");
    let mut audit = databases.postgres(In::Audit).await;
    let prepared = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
    prepared.execute(&mut audit).await.unwrap();
    gid
}

async fn nothing_is_prepared(databases: &Databases) {
    eventually("nothing is prepared", async || {
        prepared(databases, In::Audit).await.is_empty()
    })
    .await;
}

#[rocket::async_test]
async fn a_decision_to_abort_that_is_not_inserted_finishes_nothing() {
    const SWALLOW: &str = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql \
             AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER swallow BEFORE INSERT ON rocket_tx_decisions \
             FOR EACH ROW EXECUTE FUNCTION swallow()";

    let databases = set_up(Pair::Servers.databases().await).await;
    databases.execute(In::Main, SWALLOW).await;
    let gid = left_behind(&databases).await;
    let stage = restarted(databases, &[]).await;
    eventually("it is in doubt", async || {
        stage.live.in_doubt().iter().any(|one| one.name == gid)
    })
    .await;
    assert_eq!(prepared(&stage.databases, In::Audit).await, [gid]);

    let enough = "DROP TRIGGER swallow ON rocket_tx_decisions";
    stage.databases.execute(In::Main, enough).await;
    let databases = stage.close().await;
    let stage = restarted(databases, &[]).await;
    nothing_is_prepared(&stage.databases).await;
    assert_eq!(stage.notes().await, [""; 0]);
}

#[rocket::async_test]
async fn what_is_prepared_is_finished_also_when_it_is_turned_off() {
    let databases = set_up(Pair::Servers.databases().await).await;
    left_behind(&databases).await;
    let stage = restarted(databases, &[("atomic_commit", "\"off\"")]).await;
    nothing_is_prepared(&stage.databases).await;
    assert_eq!(stage.notes().await, [""; 0]);
    // Nothing new is prepared.
    let full = "BEGIN; CREATE TABLE other (n INT); PREPARE TRANSACTION 'of somebody else'";
    stage.databases.execute(In::Audit, full).await;
    let response = stage.send("POST /both").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    let decisions = "SELECT id FROM rocket_tx_decisions WHERE decision = 'commit'";
    assert_eq!(stage.databases.texts(In::Main, decisions).await, [""; 0]);
    let free = "ROLLBACK PREPARED 'of somebody else'";
    stage.databases.execute(In::Audit, free).await;
}

/// The role of a service may create tables at one launch, and not at the next.
#[rocket::async_test]
async fn a_role_that_cannot_create_tables_takes_part_once_they_are_there() {
    let mut databases = Pair::Servers.databases().await;
    let role = format!("writer_{:016x}", fastrand::u64(..));
    let mut admin = databases.postgres(In::Main).await;
    let create =
        format!("CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}");
    let create = sqlx::raw_sql(sqlx::AssertSqlSafe(create));
    create.execute(&mut admin).await.unwrap();
    let url = databases
        .url(In::Main)
        .replace("postgres@", &format!("{role}@"));
    databases.reach_at(In::Main, url);
    let stage = restarted(databases, &[]).await;
    let response = stage.send("POST /both").await;
    assert_eq!(response.summary(), (201, Some("committed")));

    let grant = format!("GRANT CREATE ON SCHEMA public TO {role}");
    let grant = sqlx::raw_sql(sqlx::AssertSqlSafe(grant));
    grant.execute(&mut admin).await.unwrap();
    eventually("the tables are there", async || {
        let tables = "SELECT relname::text FROM pg_class WHERE relname = 'rocket_tx_decisions'";
        !stage.databases.texts(In::Main, tables).await.is_empty()
    })
    .await;
    let databases = stage.close().await;
    databases.empty().await;

    let revoke = format!("REVOKE CREATE ON SCHEMA public FROM {role}");
    let revoke = sqlx::raw_sql(sqlx::AssertSqlSafe(revoke));
    revoke.execute(&mut admin).await.unwrap();
    let stage = restarted(databases, &[("atomic_commit", "\"required\"")]).await;
    let response = stage.send("POST /both").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    // Dropping a database ends the admin's session in it.
    let databases = stage.close().await;
    let drop_role = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    let drop_role = sqlx::raw_sql(sqlx::AssertSqlSafe(drop_role));
    drop_role.execute(&mut admin).await.unwrap();
    drop(databases);
}

/// Another service decides in the same database, for databases that this service does not have.
#[rocket::async_test]
async fn decisions_of_another_service_do_not_keep_ours() {
    const OF_ANOTHER: &str = "INSERT INTO rocket_tx_decisions (id, decision, participants, decided_at) \
         SELECT md5(n::text), 'commit', md5('another'), now() - interval '1 day' \
         FROM generate_series(1, 600) AS n";
    const COUNT: &str = "SELECT count(*)::text FROM rocket_tx_decisions";

    let databases = set_up(Pair::Servers.databases().await).await;
    databases.execute(In::Main, OF_ANOTHER).await;
    let audit = databases
        .texts(In::Audit, "SELECT id FROM rocket_tx_decider")
        .await;
    let ours = "INSERT INTO rocket_tx_decisions (id, decision, participants, decided_at) \
         VALUES (md5('ours'), 'commit', $1, now() - interval '1 hour')";
    let mut main = databases.postgres(In::Main).await;
    let inserted = sqlx::query(ours).bind(&audit[0]).execute(&mut main).await;
    assert_eq!(inserted.unwrap().rows_affected(), 1);
    let stage = restarted(databases, &[]).await;
    eventually("ours is forgotten", async || {
        stage.databases.texts(In::Main, COUNT).await == ["600"]
    })
    .await;
    let ours = "SELECT id FROM rocket_tx_decisions WHERE id = md5('ours')";
    assert_eq!(stage.databases.texts(In::Main, ours).await, [""; 0]);
}

/// Each attempt takes seconds, so the transactions of other deciders would have to wait.
#[rocket::async_test]
async fn a_silent_decider_is_asked_once_in_a_pass() {
    const YOUNG: &str = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() \
         AND prepared > clock_timestamp() - interval '2 s'";

    let mut databases = set_up(Pair::Servers.databases().await).await;
    let mut left = HashSet::new();
    for _ in 0..3 {
        left.insert(left_behind(&databases).await);
    }
    eventually("all are old enough", async || {
        databases.texts(In::Audit, YOUNG).await.is_empty()
    })
    .await;
    let main = databases.by_proxy(In::Main).await;
    main.set("SET LOCAL lock_timeout", Break::Stall);
    let stage = restarted(databases, &[]).await;
    eventually("a pass is over", async || {
        !names_in_doubt(&stage).is_empty()
    })
    .await;
    assert!(main.has_sprung());
    assert_eq!(names_in_doubt(&stage), left);
    let databases = stage.close().await;
    let stage = restarted(databases, &[]).await;
    nothing_is_prepared(&stage.databases).await;
}

#[rocket::async_test]
async fn what_another_service_decides_is_listed_and_left_to_it() {
    let databases = set_up(Pair::Servers.databases().await).await;
    let ours = left_behind(&databases).await;
    let another = format!("{:032x}", fastrand::u128(..));
    let gid = left_behind_by(&another, &databases).await;
    let stage = restarted(databases, &[]).await;
    eventually("it is in doubt", async || {
        names_in_doubt(&stage) == HashSet::from([gid.clone()])
    })
    .await;
    assert_eq!(stage.live.in_doubt()[0].decider, None);
    assert_eq!(
        prepared(&stage.databases, In::Audit).await,
        std::slice::from_ref(&gid)
    );
    assert_ne!(gid, ours);
    let mut audit = stage.databases.postgres(In::Audit).await;
    let finish = sqlx::AssertSqlSafe(format!("ROLLBACK PREPARED '{gid}'"));
    sqlx::raw_sql(finish).execute(&mut audit).await.unwrap();
}

#[rocket::async_test]
async fn what_is_in_doubt_stays_listed_while_its_database_is_silent() {
    let mut databases = Pair::Servers.databases().await;
    let main = databases.by_proxy(In::Main).await;
    let audit = databases.by_proxy(In::Audit).await;
    let stage = restarted(databases, &[]).await;
    // Opens the sessions that the next request uses.
    assert_eq!(stage.send("POST /both").await.status, 201);
    stage.databases.empty().await;
    main.newcomers(Newcomers::Ignored).await;
    audit.set("PREPARE TRANSACTION", Break::After);
    assert_eq!(stage.send("POST /both").await.status, 503);
    eventually("it is in doubt", async || names_in_doubt(&stage).len() == 1).await;

    audit.newcomers(Newcomers::Ignored).await;
    let before = audit.connections();
    eventually("a pass has looked for it in vain", async || {
        audit.connections() >= before + 2
    })
    .await;
    assert_eq!(names_in_doubt(&stage).len(), 1);
    for proxy in [main, audit] {
        proxy.newcomers(Newcomers::Served).await;
        proxy.cut();
    }
    nothing_is_prepared(&stage.databases).await;
    eventually("nothing is in doubt", async || {
        names_in_doubt(&stage).is_empty()
    })
    .await;
    assert_eq!(stage.notes().await, [""; 0]);
}

/// COMMIT PREPARED of another session waits for a standby that does not exist.
#[rocket::async_test]
async fn a_transaction_that_another_session_is_finishing_is_left_to_it() {
    const SETTINGS: &str = "max_prepared_transactions = 10\n\
         synchronous_standby_names = 'nobody'\nsynchronous_commit = local";

    let cluster = Cluster::start_with(SETTINGS).await;
    let databases = set_up(Databases::on_cluster(&cluster).await).await;
    let gid = left_behind(&databases).await;
    let url = databases.url(In::Audit).to_owned();
    let name = gid.clone();
    let other = rocket::tokio::spawn(async move {
        let mut other = PgConnection::connect(&url).await.unwrap();
        let wait = sqlx::raw_sql("SET synchronous_commit = on");
        wait.execute(&mut other).await.unwrap();
        let finish = format!("ROLLBACK PREPARED '{name}'");
        let finish = sqlx::raw_sql(sqlx::AssertSqlSafe(finish));
        finish.execute(&mut other).await
    });
    let waits = "SELECT pid::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("the other session waits", async || {
        databases.texts(In::Audit, waits).await.len() == 1
    })
    .await;
    let databases = Arc::new(databases);
    let service = Service::on(Arc::clone(&databases), &[SHORT]).await;
    let in_doubt = async || -> Vec<String> {
        let registry: Value = service.get("/registry").await.json();
        let in_doubt = registry["in_doubt"].as_array().unwrap().iter();
        in_doubt
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    eventually("it is in doubt", async || in_doubt().await == [&*gid]).await;
    let stop = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    databases.execute(In::Audit, stop).await;
    other.await.unwrap().unwrap();
    eventually("nothing is in doubt", async || in_doubt().await.is_empty()).await;
    assert!(!service.log().contains("ERROR"), "{}", service.log());
    service.stop().await;
}

fn names_in_doubt(stage: &Stage) -> HashSet<String> {
    let in_doubt = stage.live.in_doubt().into_iter();
    in_doubt.map(|one| one.name).collect()
}
