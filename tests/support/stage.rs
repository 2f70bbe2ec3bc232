//! A small service inside the test's process, on a real socket: the stage of a test.

use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket::figment::providers::Serialized;
use rocket::http::Status;
use rocket::tokio::sync::oneshot;
use rocket::tokio::task::JoinHandle;
use rocket::{Build, Ignite, Rocket, Shutdown, delete, post, routes};
use rocket_tx::db::{self, UrlConnection};
use rocket_tx::tx::{Live, LiveTransaction};
use rocket_tx::{Error, Tx, problem_catchers, with_backend};

use super::{Audit, Backend, Databases, Http, HttpResponse, In, Main, eventually};

/// Inserts a note, as a handler would.
pub async fn note(connection: &mut UrlConnection, text: &str) -> sqlx::Result<()> {
    with_backend!(connection, |db| sqlx::query(
        "INSERT INTO notes (text) VALUES ($1)"
    )
    .bind(text)
    .execute(db)
    .await
    .map(drop))
}

/// Runs one or more statements.
pub async fn run(connection: &mut UrlConnection, sql: &'static str) -> sqlx::Result<()> {
    with_backend!(connection, |db| sqlx::raw_sql(sql)
        .execute(db)
        .await
        .map(drop))
}

#[delete("/pairs")]
async fn part(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<(), Error> {
    run(&mut main, "DELETE FROM pairs").await?;
    run(&mut audit, "DELETE FROM pairs").await?;
    Ok(())
}

/// Writes a note in both databases.
#[post("/both")]
pub async fn both(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    Ok(Status::Created)
}

/// A service with the databases `main` and `audit`, their tables `notes` and `pairs`, and the
/// routes, fairings and state that a test adds. The test must attach `Settlement` itself.
pub struct Stage {
    pub databases: Databases,
    pub http: Http,
    pub live: Live,
    pub shutdown: Shutdown,
    running: JoinHandle<Result<Rocket<Ignite>, rocket::Error>>,
}

impl Stage {
    pub async fn new(backend: Backend, add: impl FnOnce(Rocket<Build>) -> Rocket<Build>) -> Self {
        Self::with(backend, &[], add).await
    }

    /// Starts a stage with settings, as they would be written in `Rocket.toml`.
    pub async fn with(
        backend: Backend,
        settings: &[(&str, &str)],
        add: impl FnOnce(Rocket<Build>) -> Rocket<Build>,
    ) -> Self {
        let databases = Databases::with_tables(backend).await;
        Self::on(databases, settings, add).await
    }

    pub async fn on(
        databases: Databases,
        settings: &[(&str, &str)],
        add: impl FnOnce(Rocket<Build>) -> Rocket<Build>,
    ) -> Self {
        let rocket = rocket::custom(figment(&databases, settings));
        Self::from(databases, rocket, add).await
    }

    /// Starts a stage from a rocket. The fairings of `rocket` run before those of the databases.
    pub async fn from(
        databases: Databases,
        rocket: Rocket<Build>,
        add: impl FnOnce(Rocket<Build>) -> Rocket<Build>,
    ) -> Self {
        let (ready, launched) = oneshot::channel();
        let rocket = rocket
            .attach(db::init::<Main>())
            .attach(db::init::<Audit>())
            .mount("/", routes![part])
            .register("/", problem_catchers());
        let rocket = add(rocket).attach(AdHoc::on_liftoff("Ready", |rocket| {
            Box::pin(async move {
                let live = rocket.state::<Live>().unwrap().clone();
                let ready = ready.send((rocket.config().port, live, rocket.shutdown()));
                assert!(ready.is_ok());
            })
        }));
        let running = rocket::tokio::spawn(rocket.launch());
        let Ok((port, live, shutdown)) = launched.await else {
            panic!("the launch failed: {:?}", running.await);
        };
        Self {
            databases,
            http: Http::new(port),
            live,
            shutdown,
            running,
        }
    }

    /// Sends a request without a body. `line` is `METHOD /path`.
    pub async fn send(&self, line: &str) -> HttpResponse {
        self.http.send(line).await
    }

    /// Returns the committed notes of both databases.
    pub async fn notes(&self) -> Vec<String> {
        let mut notes = self.databases.notes(In::Main).await;
        notes.extend(self.databases.notes(In::Audit).await);
        notes
    }

    pub fn outstanding(&self) -> Vec<LiveTransaction> {
        self.live.transactions()
    }

    /// Asserts that nothing is outstanding, and that every connection is back in its pool and
    /// works.
    pub async fn nothing_is_stuck(&self) {
        eventually("nothing is outstanding", async || {
            self.outstanding().is_empty()
        })
        .await;
        // More requests than any pool here has connections.
        for _ in 0..6 {
            let response = self.send("DELETE /pairs").await;
            assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
        }
    }

    /// Shuts the service down. The launch must return without an error.
    pub async fn close(self) -> Databases {
        self.shutdown.notify();
        drop(self.running.await.unwrap().unwrap());
        self.databases
    }
}

/// The configuration of a stage, as from `Rocket.toml`. The service ignores signals, because they
/// are meant for the test's process.
pub fn figment(databases: &Databases, settings: &[(&str, &str)]) -> Figment {
    let mut figment = databases
        .figment()
        .merge(("port", 0))
        .merge(("log_level", "off"))
        .merge(("shutdown.ctrlc", false))
        .merge(Serialized::default(
            "shutdown.signals",
            Vec::<String>::new(),
        ));
    for (key, value) in settings {
        let value: rocket::figment::value::Value = value.parse().unwrap();
        figment = figment.merge((*key, value));
    }
    figment
}
