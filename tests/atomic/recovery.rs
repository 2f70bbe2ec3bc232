//! Recovery finishes what other processes have prepared.

use std::collections::HashSet;

use super::*;
use crate::support::{Newcomers, eventually};

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
async fn left_behind(databases: &Databases) -> String {
    let decider = databases
        .texts(In::Main, "SELECT id FROM rocket_tx_decider")
        .await
        .remove(0);
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

    let revoke = format!("REVOKE CREATE ON SCHEMA public FROM {role}");
    let revoke = sqlx::raw_sql(sqlx::AssertSqlSafe(revoke));
    revoke.execute(&mut admin).await.unwrap();
    let stage = restarted(databases, &[("atomic_commit", "\"required\"")]).await;
    let response = stage.send("POST /both").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    stage.close().await;
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    let drop = sqlx::raw_sql(sqlx::AssertSqlSafe(drop));
    drop.execute(&mut admin).await.unwrap();
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

#[rocket::async_test]
async fn a_silent_decider_is_asked_once_in_a_pass() {
    let databases = set_up(Pair::Servers.databases().await).await;
    let mut expected = HashSet::new();
    for _ in 0..3 {
        expected.insert(left_behind(&databases).await);
    }
    let mut databases = databases;
    let main = databases.by_proxy(In::Main).await;
    let audit = databases.by_proxy(In::Audit).await;
    let names = |stage: &Stage| -> HashSet<String> {
        let in_doubt = stage.live.in_doubt().into_iter();
        in_doubt.map(|one| one.name).collect()
    };
    // The transactions are younger than two seconds, so the launch does not finish them.
    let stage = restarted(databases, &[]).await;
    main.newcomers(Newcomers::Ignored).await;
    let before = main.connections();
    eventually("all are in doubt", async || names(&stage) == expected).await;
    // Each is also listed while it cannot be seen.
    audit.newcomers(Newcomers::Refused).await;
    audit.cut();
    assert_eq!(main.connections() - before, 1);
    main.newcomers(Newcomers::Served).await;
    main.cut();
    audit.newcomers(Newcomers::Served).await;
    nothing_is_prepared(&stage.databases).await;
    eventually("nothing is in doubt", async || names(&stage).is_empty()).await;
}
