//! A service without a `tracing` subscriber: a request writes no line to Rocket's log. The test is
//! the only one of its process, because the log is one for the whole process.

#![cfg(feature = "sqlite")]

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use rocket::figment::Figment;
use rocket::local::blocking::Client;
use rocket::{Config, post, routes};
use rocket_tx::db::{self, SqlitePool};
use rocket_tx::rocket_db_pools::{self, Database};
use rocket_tx::{Error, Settlement, Tx, sqlx};

struct Lines(Mutex<Vec<String>>);

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.target(), record.args());
            self.0.lock().push(line);
        }
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(parking_lot::const_mutex(Vec::new()));

#[derive(Database)]
#[database("main")]
struct Main(SqlitePool);

#[post("/")]
async fn create(mut tx: Tx<Main>) -> Result<(), Error> {
    sqlx::query("CREATE TABLE notes (text TEXT)")
        .execute(&mut *tx)
        .await?;
    Ok(())
}

mod sqlite {
    use super::*;

    #[test]
    fn a_request_writes_no_line_of_this_library_to_the_log_of_rocket() {
        log::set_logger(&LINES).unwrap();
        let file = std::env::temp_dir().join(format!("quiet_log-{}.db", std::process::id()));
        let figment = Figment::from(Config::debug_default())
            .merge(("databases.main.url", file.display().to_string()));
        let rocket = rocket::custom(figment)
            .attach(db::init::<Main>())
            .attach(Settlement::new())
            .mount("/", routes![create]);
        let client = Client::untracked(rocket).unwrap();
        log::set_max_level(LevelFilter::Info);
        LINES.0.lock().clear();
        let response = client.post("/").dispatch();
        assert_eq!(
            response.headers().get_one("transaction-outcome"),
            Some("committed")
        );
        drop(response);
        let lines = std::mem::take(&mut *LINES.0.lock());
        client.terminate();
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        let foreign = |line: &String| !line.starts_with("rocket::") && !line.starts_with("_ ");
        let ours: Vec<String> = lines.iter().filter(|line| foreign(line)).cloned().collect();
        assert!(ours.is_empty(), "{ours:#?}");
        assert!(
            !lines.is_empty(),
            "the test sees the lines that Rocket itself writes"
        );
    }
}
