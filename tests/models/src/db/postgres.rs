//! The sessions of a Postgres database: stand-ins for the code that they call, and scenarios.

#[path = "../../../../rocket_tx/src/db/postgres/commit_turns.rs"]
mod commit_turns;
#[path = "../../../../rocket_tx/src/db/postgres/session.rs"]
mod session;
#[path = "../../../../rocket_tx/src/db/postgres/sessions.rs"]
mod sessions;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use self::session::{EndResult, OnReturn};
use self::sessions::{Limits, Liveness, Sessions};
use self::settings::Settings;
use super::WaitPolicy;
use crate::{Server, dropped_after, with_random_scheduler};

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

/// A stand-in for the check that a session's replies belong to the statements that were sent: they
/// do if the nonce comes back, a random text that is sent with the statements. Such replies *prove*
/// the session.
mod proof {
    use shuttle::future::yield_now;
    use shuttle::rand::{Rng, thread_rng};

    use crate::postgres::PgConnection;

    /// The replies of the server to several statements.
    pub struct Replies {
        /// Whether these are the replies to the statements that were sent.
        proves: bool,
        pub error: Option<sqlx::Error>,
    }

    /// Returns the text that [`Replies::text`] returns too, so that the nonce always matches.
    pub fn nonce() -> String {
        "1".into()
    }

    impl Replies {
        /// Waits for the server. If the replies prove the session, it is clean afterwards.
        pub async fn to(connection: &mut PgConnection, sql: String) -> Self {
            yield_now().await;
            // A session whose replies are one statement late is neither proved nor cleaned.
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

const MAX_SESSIONS: u32 = 2;

fn sessions(server: &Server) -> Sessions {
    let limits = Limits::new(MAX_SESSIONS)
        .least(0)
        .wait(Duration::from_secs(5))
        .idle(Duration::from_secs(60));
    Sessions::new(Settings(server.clone()), limits, Arc::new(OnceLock::new()))
}

/// A user of a session: leaves a transaction and other state in the session, and returns it in a
/// way chosen at random. Returns whether it had a session.
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
    assert_eq!(state.left, None, "the session has state of another user");
    assert!(
        !state.in_transaction,
        "a transaction of another user is open"
    );
    state.users += 1;
    assert_eq!(state.users, 1, "two users have one session");
    state.left = Some(number);
    state.in_transaction = true;
    yield_now().await;
    let ending = thread_rng().gen_range(0..3);
    session.live().connection.0.state.users -= 1;
    match ending {
        // The transaction is settled and the session is cleaned in the same round trip.
        0 => {
            if !matches!(session.run_final(&["COMMIT"]).await, EndResult::Proved) {
                session.set_on_return(OnReturn::Close);
            }
        }
        // A guard or a task dropped the session: it must prove itself before it is reused.
        1 => session.set_on_return(OnReturn::Check),
        // A session that is marked to be closed stays so.
        _ => {
            session.set_on_return(OnReturn::Close);
            session.set_on_return(OnReturn::Reuse);
        }
    }
    true
}

async fn acquired_and_returned() {
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
    assert!(done >= 3, "a waiting user did not get a session");
    assert!(
        server.0.lock().most <= MAX_SESSIONS as usize,
        "too many sessions were open at once"
    );
    // No place is lost: the full number of sessions can be acquired at once.
    let mut all = Vec::new();
    for _ in 0..MAX_SESSIONS {
        let session = sessions
            .acquire(WaitPolicy::QUEUE, Liveness::Unchecked)
            .await;
        let mut session = session.unwrap();
        assert_eq!(session.live().connection.0.state.left, None);
        all.push(session);
    }
    drop(all);
    sessions.close().await;
    assert_eq!(
        server.0.lock().open,
        0,
        "a session is open after its pool was closed"
    );
}

pub fn a_session_has_one_user_at_a_time_and_nothing_of_its_last_user() {
    with_random_scheduler(acquired_and_returned);
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
    assert_eq!(
        server.0.lock().open,
        0,
        "a session is open after its pool was closed"
    );
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        server.0.lock().open,
        0,
        "a session was opened after the pool was closed"
    );
}

pub fn a_closed_pool_has_no_open_session() {
    with_random_scheduler(closed_under_load);
}
