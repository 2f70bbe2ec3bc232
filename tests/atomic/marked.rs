//! A resource says that it has written, so the server is not asked. Whatever the handler does, the
//! outcome is the same as if the server had been asked.

use std::borrow::Cow;

use rocket_tx::Outstanding;
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{Resource, SettleContext};
use sqlx::postgres::PgListener;

use super::*;

/// Has to do with `main` when the request is settled.
struct Writer {
    /// Writes a note there.
    writes: bool,
    /// Says that it has written.
    marks: bool,
}

#[rocket::async_trait]
impl Resource for Writer {
    fn name(&self) -> Cow<'_, str> {
        "writer".into()
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        if let Some(mut transaction) = context.transaction::<Main>() {
            if self.writes {
                note(transaction.connection(), "by the resource").await?;
            }
            if self.marks {
                transaction.mark_written();
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

const WRITE: &str = "INSERT INTO notes VALUES ('written')";

/// Violates a deferred constraint.
const UNPAIRED: &str = "INSERT INTO pairs VALUES (1, 2)";

/// Statements of the handler in `main` and in `audit`. What some of them do outlives a commit of a
/// transaction that has written nothing.
const CASES: [(&str, &str); 17] = [
    ("", WRITE),
    ("", ""),
    (WRITE, ""),
    ("", "SELECT count(*) FROM notes"),
    ("", "NOTIFY somebody"),
    (UNPAIRED, "NOTIFY somebody"),
    (UNPAIRED, "DECLARE late CURSOR WITH HOLD FOR SELECT sneak()"),
    (
        "",
        "SAVEPOINT mine; INSERT INTO notes VALUES ('lost'); ROLLBACK TO mine",
    ),
    ("", "SELECT nonsense"),
    (UNPAIRED, WRITE),
    ("", UNPAIRED),
    ("", "INSERT INTO notes VALUES ('lost'); COMMIT"),
    (
        "",
        "ROLLBACK; BEGIN READ WRITE; INSERT INTO notes VALUES ('lost')",
    ),
    ("", "ROLLBACK; BEGIN READ WRITE"),
    ("ROLLBACK; BEGIN READ WRITE", WRITE),
    ("CLOSE ALL", WRITE),
    ("SELECT 1", "CLOSE ALL; INSERT INTO notes VALUES ('lost')"),
];

/// Writes when COMMIT runs the query of its cursor.
const SNEAK: &str = "CREATE FUNCTION sneak() RETURNS int LANGUAGE plpgsql AS \
                     $$BEGIN INSERT INTO notes VALUES ('sneaked'); RETURN 1; END$$";

#[post("/case/<case>?<marks>")]
async fn case(
    case: usize,
    marks: bool,
    outstanding: &Outstanding,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    outstanding.join(Writer {
        writes: true,
        marks,
    })?;
    let (in_main, in_audit) = CASES[case];
    let _swallowed = run(&mut main, in_main).await;
    let _swallowed = run(&mut audit, in_audit).await;
    Ok(Status::Created)
}

/// Writes `audit` only.
#[post("/reads-main?<marks>")]
async fn reads_main(
    marks: bool,
    outstanding: &Outstanding,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    outstanding.join(Writer {
        writes: false,
        marks,
    })?;
    run(&mut main, "SELECT count(*) FROM notes").await?;
    note(&mut audit, "written").await?;
    Ok(Status::Created)
}

/// Exchanges the driver's connections inside the sessions.
#[post("/swapped?<marks>")]
async fn swapped(
    marks: bool,
    outstanding: &Outstanding,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    outstanding.join(Writer {
        writes: true,
        marks,
    })?;
    note(&mut audit, "written").await?;
    if let (UrlConnection::Postgres(main), UrlConnection::Postgres(audit)) =
        (&mut *main, &mut *audit)
    {
        std::mem::swap(&mut **main, &mut **audit);
    }
    Ok(Status::Created)
}

async fn stage_of_marks() -> (Stage, Steps) {
    let steps = Steps::default();
    let recorder = Recorder(Arc::clone(&steps));
    let settings = [("atomic_commit", "\"required\"")];
    let stage = Stage::on(Pair::Servers.databases().await, &settings, |rocket| {
        rocket
            .mount("/", routes![case, reads_main, swapped])
            .attach(Settlement::new().observer(recorder))
    })
    .await;
    (stage, steps)
}

/// Returns how many notifications have arrived since the last call.
async fn notifications(listener: &mut PgListener, databases: &Databases) -> usize {
    databases
        .execute(In::Audit, "NOTIFY somebody, 'the end'")
        .await;
    let mut number = 0;
    while listener.recv().await.unwrap().payload() != "the end" {
        number += 1;
    }
    number
}

#[rocket::async_test]
async fn the_outcome_does_not_depend_on_the_mark() {
    let (stage, _) = stage_of_marks().await;
    stage.databases.execute(In::Audit, SNEAK).await;
    let mut listener = PgListener::connect(stage.databases.url(In::Audit))
        .await
        .unwrap();
    listener.listen("somebody").await.unwrap();
    for (number, case) in CASES.iter().enumerate() {
        let mut results = Vec::new();
        for marks in [true, false] {
            let response = stage
                .send(&format!("POST /case/{number}?marks={marks}"))
                .await;
            let (status, outcome) = response.summary();
            let outcome = outcome.map(str::to_owned);
            let kind = match status {
                201 => String::new(),
                _ => response.kind(),
            };
            let notified = notifications(&mut listener, &stage.databases).await;
            let notes = stage.notes().await;
            if outcome.as_deref() == Some("rolled-back") {
                assert_eq!((&notes, notified), (&Vec::new(), 0), "{case:?} {marks}");
            }
            results.push((status, outcome, kind, notes, notified));
            for database in [In::Main, In::Audit] {
                assert_eq!(prepared(&stage.databases, database).await, [""; 0]);
            }
            stage.databases.empty().await;
            stage.nothing_is_stuck().await;
        }
        assert_eq!(results[0], results[1], "{case:?}");
    }
}

#[rocket::async_test]
async fn a_marked_transaction_takes_part_without_a_question() {
    for (marks, expected) in [
        (
            true,
            &[
                "prepare transaction audit",
                "decide main",
                "commit prepared audit",
            ][..],
        ),
        (false, &["commit main", "commit audit"]),
    ] {
        let (stage, steps) = stage_of_marks().await;
        let path = format!("POST /reads-main?marks={marks}");
        let response = stage.send(&path).await;
        assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        assert_eq!(stage.notes().await, ["written"]);
        let seen = std::mem::take(&mut *steps.lock());
        let prepared = ["prepare writer", "prepare main", "prepare audit"];
        let released = ["commit writer"];
        let expected = [&prepared, expected, &released].concat();
        assert_eq!(seen, expected, "{marks}");
    }
}

#[rocket::async_test]
async fn exchanged_connections_are_found_with_the_mark() {
    let (stage, _) = stage_of_marks().await;
    for marks in [true, false] {
        let response = stage.send(&format!("POST /swapped?marks={marks}")).await;
        assert!(response.summary().0 >= 500, "{marks}: {response:?}");
        assert_ne!(response.summary().1, Some("committed"), "{marks}");
        assert_eq!(stage.notes().await, [""; 0], "{marks}");
        assert_eq!(prepared(&stage.databases, In::Audit).await, [""; 0]);
    }
}
