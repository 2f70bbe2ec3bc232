//! What a test process leaves when it is killed.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::*;
use crate::support::eventually;

/// A test process that has launched a service, and waits.
pub(super) struct TestProcess {
    process: Child,
    /// What it prints. It fails if nobody reads.
    lines: Lines<BufReader<ChildStdout>>,
    urls: Vec<String>,
}

impl TestProcess {
    pub(super) fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "testing::left_over::a_test_process",
                "--exact",
                "--nocapture",
            ])
            .env("TESTING_CHILD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let urls = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, urls) = line.split_once("urls: ")?;
            Some(urls.split(' ').map(str::to_owned).collect())
        });
        let urls = urls.expect("the process prints its URLs");
        Self {
            process,
            lines,
            urls,
        }
    }

    /// Kills the process as `kill -9` does.
    fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.urls
    }

    /// Lets the test in the process end.
    pub(super) fn end(mut self) -> Vec<String> {
        drop(self.process.stdin.take());
        let output: Vec<String> = self.lines.by_ref().map_while(Result::ok).collect();
        assert!(self.process.wait().unwrap().success(), "{output:?}");
        self.urls
    }

    async fn assert_has_databases(&self) {
        for url in &self.urls {
            assert!(exists(url).await, "{url}");
        }
    }
}

/// Runs in a process of its own. As a test of the whole suite, it does nothing.
#[rocket::async_test]
async fn a_test_process() {
    if std::env::var_os("TESTING_CHILD").is_none() {
        return;
    }
    let (file, database) = (app(Backend::Sqlite).await, app(Backend::Postgres).await);
    file.post("/notes/a").dispatch().await;
    database.post("/notes/a").dispatch().await;
    prepare(&database.url::<Main>()).await;
    println!("urls: {} {}", file.url::<Main>(), database.url::<Main>());
    // Ends when the parent process closes the pipe.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Leaves a prepared transaction, as a request that is killed in the middle of an atomic commit.
async fn prepare(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let name = url.rsplit_once('/').unwrap().1;
    let sql = format!("BEGIN; INSERT INTO notes VALUES ('b'); PREPARE TRANSACTION 'of {name}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
}

#[rocket::async_test]
async fn a_later_process_removes_what_a_killed_one_left() {
    let server = std::env::var("TEST_POSTGRES_URL").unwrap();
    let mut admin = PgConnection::connect(&server).await.unwrap();
    let similar = format!("rocket_tx_test_{:08x}", std::process::id());
    let create = format!("CREATE DATABASE {similar}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create))
        .execute(&mut admin)
        .await
        .unwrap();

    let running = TestProcess::start();
    let killed = TestProcess::start();
    killed.assert_has_databases().await;
    let left_over = killed.kill();
    for url in &left_over {
        assert!(exists(url).await, "{url}");
    }
    // The server may need a moment to notice that the process has ended.
    eventually("what the killed process left is removed", async || {
        let mut urls = left_over.clone();
        urls.extend(TestProcess::start().end());
        let exist = join_all(urls.iter().map(|url| exists(url))).await;
        !exist.contains(&true)
    })
    .await;
    // It removes only what belongs to processes that have ended.
    running.assert_has_databases().await;
    for url in running.end() {
        assert!(!exists(&url).await, "{url}");
    }
    assert!(exists(&format!("{server}/{similar}")).await);
    let drop = format!("DROP DATABASE {similar}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop))
        .execute(&mut admin)
        .await
        .unwrap();
}
