//! The sessions of a Postgres database: stand-ins for what they talk to, and scenes.

#[path = "../../../../rocket_tx/src/db/postgres/session.rs"]
mod session;
#[path = "../../../../rocket_tx/src/db/postgres/sessions.rs"]
mod sessions;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use self::session::{Last, OnReturn};
use self::sessions::{Limits, Liveness, Sessions};
use self::settings::Settings;
use super::WaitPolicy;
use crate::{Server, at_random, dropped_after};

mod fate {
    use crate::postgres::PgConnection;

    pub struct Backend;

    impl Backend {
        pub async fn new(_: String, _: String, _: &mut PgConnection) -> Self {
            Self
        }

        pub async fn stop(&self, _: &super::Sessions) {}
    }
}

mod settings {
    use crate::Server;
    use crate::postgres::PgConnectOptions;

    pub struct Settings(pub Server);

    pub struct CleanUp;

    impl Settings {
        pub fn session_options(&self) -> PgConnectOptions {
            PgConnectOptions(self.0.clone())
        }

        pub fn opening(&self, _: &str) -> String {
            String::new()
        }

        pub fn clean_up(&self, _: bool) -> CleanUp {
            CleanUp
        }
    }

    impl CleanUp {
        pub fn after(&self, before: &[&str], _: &str) -> (String, usize) {
            ("clean up".into(), before.len() + 1)
        }
    }
}

mod proof {
    use shuttle::future::yield_now;
    use shuttle::rand::{Rng, thread_rng};

    use crate::postgres::PgConnection;

    /// Whether they are those of what was asked.
    pub struct Answers {
        proves: bool,
        pub error: Option<sqlx::Error>,
    }

    /// As [`Answers::text`] tells it: no connections are exchanged here.
    pub fn nonce() -> String {
        "1".into()
    }

    impl Answers {
        /// The server is at it for a while; then nothing of the last user is left.
        pub async fn to(connection: &mut PgConnection, sql: String) -> Self {
            yield_now().await;
            // A session that is one answer behind proves nothing, and keeps what is left in it.
            let proves = sql != "clean up" || thread_rng().gen_range(0..4) > 0;
            if proves {
                connection.0.state.left = None;
                connection.0.state.in_transaction = false;
            }
            let error = None;
            Self { proves, error }
        }

        pub fn prove(&self, _: usize, _: &str) -> bool {
            self.proves
        }

        pub fn text(&self, column: usize) -> Option<&str> {
            Some(if column == 2 { "true" } else { "1" })
        }

        pub fn into_error(self) -> sqlx::Error {
            sqlx::Error::WorkerCrashed
        }
    }
}

const MOST: u32 = 2;

fn sessions(server: &Server) -> Sessions {
    let limits = Limits {
        most: MOST,
        least: 0,
        wait: Duration::from_secs(5),
        idle: Duration::from_secs(60),
    };
    Sessions::new(Settings(server.clone()), limits, Arc::new(OnceLock::new()))
}

/// One user of a session, who leaves something in it and gives it back in one of the ways there are.
async fn user(sessions: &Sessions, number: usize) -> bool {
    let acquiring = async {
        match number {
            0 => {
                sessions
                    .acquire(WaitPolicy::FAIL_FAST, Liveness::Unchecked)
                    .await
            }
            1 => {
                sessions
                    .acquire(WaitPolicy::QUEUE, Liveness::Verified)
                    .await
            }
            _ => {
                sessions
                    .acquire(WaitPolicy::QUEUE, Liveness::Unchecked)
                    .await
            }
        }
    };
    let times = match number {
        2 => Some(thread_rng().gen_range(0..6)),
        _ => None,
    };
    let mut session = match dropped_after(times, acquiring).await {
        Some(Ok(session)) => session,
        Some(Err(sqlx::Error::PoolTimedOut)) if number == 0 => return false,
        Some(Err(sqlx::Error::PoolClosed)) | None => return false,
        Some(Err(error)) => panic!("{error}"),
    };
    let state = &mut session.live().connection.0.state;
    assert_eq!(state.left, None, "something of another user is left");
    assert!(!state.in_transaction, "a transaction of another is open");
    state.users += 1;
    assert_eq!(state.users, 1, "two have one session");
    state.left = Some(number);
    state.in_transaction = true;
    yield_now().await;
    let how = thread_rng().gen_range(0..3);
    session.live().connection.0.state.users -= 1;
    match how {
        // Settled, with what cleans up in the same round trip.
        0 => {
            if !matches!(session.run_last(&["COMMIT"]).await, Last::Proved) {
                session.set_on_return(OnReturn::Close);
            }
        }
        // A guard or a task dropped it: it proves itself first.
        1 => session.set_on_return(OnReturn::Check),
        // What is to be closed stays so.
        _ => {
            session.set_on_return(OnReturn::Close);
            session.set_on_return(OnReturn::Reuse);
        }
    }
    true
}

async fn lent_and_given_back() {
    let server = Server::default();
    let sessions = sessions(&server);
    let mut tasks = Vec::new();
    for number in 0..5 {
        let sessions = sessions.clone();
        let work = async move { user(&sessions, number).await };
        tasks.push(tokio::spawn(work));
    }
    let mut done = 0;
    for task in tasks {
        done += usize::from(task.await.unwrap());
    }
    assert!(done >= 3, "those who wait get one");
    assert!(server.0.lock().most <= MOST as usize, "too many sessions");
    // No place is lost: as many as there may be can be had at once.
    let mut all = Vec::new();
    for _ in 0..MOST {
        let session = sessions
            .acquire(WaitPolicy::QUEUE, Liveness::Unchecked)
            .await;
        let mut session = session.unwrap();
        assert_eq!(session.live().connection.0.state.left, None);
        all.push(session);
    }
    drop(all);
    sessions.close().await;
    assert_eq!(server.0.lock().open, 0, "a session outlives its pool");
}

pub fn no_session_has_two_users_or_brings_anything_of_another() {
    at_random(lent_and_given_back);
}

async fn closed_under_load() {
    let server = Server::default();
    let sessions = sessions(&server);
    let mut tasks = Vec::new();
    for number in 1..4 {
        let sessions = sessions.clone();
        let work = async move { user(&sessions, number).await };
        tasks.push(tokio::spawn(work));
    }
    sessions.close().await;
    let late = sessions
        .acquire(WaitPolicy::QUEUE, Liveness::Unchecked)
        .await;
    assert!(matches!(late, Err(sqlx::Error::PoolClosed)));
    assert_eq!(server.0.lock().open, 0, "a session outlives its pool");
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(server.0.lock().open, 0, "one was opened after the end");
}

pub fn a_pool_that_is_closed_has_no_session_left() {
    at_random(closed_under_load);
}
