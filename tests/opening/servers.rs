//! Servers that cannot be reached or refuse the login, and invalid URLs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use std::sync::Arc;

use reqwest::Url;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use rocket::tokio::net::{TcpListener, TcpSocket, TcpStream};
use rocket::tokio::time::timeout;
use sqlx::{AssertSqlSafe, Executor};

use super::refused;
use crate::support::{Backend, Databases, In, Starting};

const PASSWORD: &str = "hunter2-of-the-test";

/// The service must refuse `url` for `reasons`, and must not log the password at any level.
async fn main_at(url: &str, reasons: &[&str]) -> String {
    let log = launch_at(url, &[&["`url`"], reasons].concat()).await;
    assert!(!log.contains(PASSWORD), "{log}");
    log
}

async fn launch_at(url: &str, reasons: &[&str]) -> String {
    let databases = Databases::new(Backend::Sqlite).await;
    let variables = [
        (
            "ROCKET_DATABASES",
            &*format!(
                r#"{{main={{url="{url}",connect_timeout="1s"}},audit={{url="{}"}}}}"#,
                databases.audit
            ),
        ),
        ("RUST_LOG", "debug"),
    ];
    refused(&databases, &variables, reasons).await
}

/// Like `main_at`, for a login that would be refused again: the service must not retry.
async fn main_is_not_retried_at(url: &str, reasons: &[&str]) {
    let log = main_at(url, reasons).await;
    assert!(!log.contains("retr"), "{log}");
}

/// Returns the URL of the test's Postgres, with a password that the server does not require, and
/// with another part changed.
fn real(change: impl FnOnce(&mut Url)) -> String {
    let server = std::env::var("TEST_POSTGRES_URL").unwrap();
    let mut url: Url = server.parse().unwrap();
    url.set_password(Some(PASSWORD)).unwrap();
    change(&mut url);
    url.into()
}

/// Serves one connection as a Postgres server that refuses every password. The tests' Postgres may
/// not check passwords at all.
/// <https://www.postgresql.org/docs/current/protocol-flow.html>
async fn turn_away(mut client: TcpStream) -> std::io::Result<()> {
    const SSL_REQUEST: u32 = 80_877_103;
    const ASK_FOR_PASSWORD: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
    const FIELDS: &[u8] =
        b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"app\"\0\0";

    loop {
        let length = client.read_u32().await?;
        let mut startup = vec![0; usize::try_from(length).unwrap() - 4];
        client.read_exact(&mut startup).await?;
        if !startup.starts_with(&SSL_REQUEST.to_be_bytes()) {
            break;
        }
        client.write_all(b"N").await?;
    }
    client.write_all(ASK_FOR_PASSWORD).await?;
    assert_eq!(client.read_u8().await?, b'p');
    let length = client.read_u32().await?;
    let mut password = vec![0; usize::try_from(length).unwrap() - 4];
    client.read_exact(&mut password).await?;
    assert!(password.starts_with(PASSWORD.as_bytes()));
    client.write_all(b"E").await?;
    let length = u32::try_from(FIELDS.len()).unwrap() + 4;
    client.write_u32(length).await?;
    client.write_all(FIELDS).await
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, url_of(address))
}

fn url_of(address: SocketAddr) -> String {
    format!("postgres://app:{PASSWORD}@{address}/todos")
}

/// Starts a proxy that forwards the first `served` connections to the server of `url` and never
/// replies to the others. Returns the proxy's URL.
async fn silent_after(served: usize, mut url: Url) -> Url {
    let server = ("127.0.0.1", url.port().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    url.set_port(Some(listener.local_addr().unwrap().port()))
        .unwrap();
    rocket::tokio::spawn(async move {
        let mut ignored = Vec::new();
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            if number >= served {
                ignored.push(client);
                continue;
            }
            let mut server = TcpStream::connect(server).await.unwrap();
            rocket::tokio::spawn(async move {
                let _ended = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    url
}

mod postgres {
    use super::*;

    /// A launch opens a handful of connections, one after another.
    #[rocket::async_test]
    async fn a_launch_fails_if_the_server_stops_replying() {
        for served in 1..=8 {
            let databases = Databases::new(Backend::Postgres).await;
            let url = silent_after(served, databases.main.parse().unwrap()).await;
            let variable = format!(
                r#"{{main={{url="{url}",connect_timeout="1s"}},audit={{url="{}"}}}}"#,
                databases.audit
            );
            let variables = [("ROCKET_DATABASES", &*variable)];
            let starting = Starting::new(Arc::new(databases), &[], &variables);
            match timeout(Duration::from_secs(50), starting.launched()).await {
                Ok(Ok(_)) => println!("{served} connections are enough"),
                Ok(Err((status, log))) => {
                    assert_eq!(status.code(), Some(1), "{served}: {log}");
                    assert!(log.contains("no reply within "), "{served}: {log}");
                }
                Err(_) => panic!("with {served} connections the launch neither succeeds nor fails"),
            }
        }
    }

    #[rocket::async_test]
    async fn a_server_that_is_down_is_named_as_the_cause() {
        // The port is bound but not listened on: connections are refused, and no other test gets
        // the port.
        let taken = TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = url_of(taken.local_addr().unwrap());
        let log = main_at(&url, &["onnection refused", "that the database is running"]).await;
        // The wait is not silent.
        let warning = "the Postgres server cannot be used yet; retrying for 1s";
        assert_eq!(log.matches(warning).count(), 1, "{log}");
        let refusal = log.lines().find(|line| line.contains("ERROR")).unwrap();
        let prefix = "error communicating with database";
        assert_eq!(refusal.matches(prefix).count(), 1, "{refusal}");
    }

    /// Then a part of the password stands in the place of the host.
    #[rocket::async_test]
    async fn a_password_that_is_not_encoded_is_not_repeated() {
        let url = format!("postgres://app:p@{PASSWORD}/w#rd@127.0.0.1/todos");
        main_at(&url, &["percent-encoded, `@` as `%40`"]).await;
    }

    #[rocket::async_test]
    async fn a_launch_fails_if_the_server_never_replies() {
        let (_listener, url) = listen().await;
        let started = Instant::now();
        main_at(&url, &["no reply within 1s"]).await;
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[rocket::async_test]
    async fn a_database_that_does_not_exist_is_named_as_the_cause() {
        let url = real(|url| url.set_path("/no_such_database"));
        let reason = r#"database "no_such_database" does not exist"#;
        main_is_not_retried_at(&url, &[reason, "create this database"]).await;
    }

    #[rocket::async_test]
    async fn a_role_that_does_not_exist_is_named_as_the_cause() {
        let url = real(|url| url.set_username("no_such_role").unwrap());
        main_is_not_retried_at(&url, &["no_such_role", "create the role"]).await;
    }

    /// Creates a role and its database for one test, and gives a URL of that role.
    async fn role_without(right: &str, reasons: &[&str]) {
        let databases = Databases::new(Backend::Postgres).await;
        let mut admin = databases.postgres(In::Main).await;
        let name = sqlx::query_scalar("SELECT current_database()::text");
        let name: String = name.fetch_one(&mut admin).await.unwrap();
        let role = format!("{name}_reader");
        let revoke = right.replace("DATABASE main", &format!("DATABASE {name}"));
        let create = format!("CREATE ROLE {role} LOGIN; REVOKE {revoke} FROM public");
        let drop_role = format!("DROP ROLE {role}");
        admin
            .execute(sqlx::raw_sql(AssertSqlSafe(create)))
            .await
            .unwrap();
        let url = real(|url| {
            url.set_username(&role).unwrap();
            url.set_path(&name);
        });
        let log = launch_at(&url, &[&["permission denied"], reasons].concat()).await;
        assert!(!log.contains("retr"), "{log}");
        admin.execute(AssertSqlSafe(drop_role)).await.unwrap();
    }

    #[rocket::async_test]
    async fn a_role_that_lacks_a_right_is_reported_with_that_right() {
        role_without(
            "CREATE ON SCHEMA public",
            &["GRANT CREATE ON SCHEMA public TO"],
        )
        .await;
        role_without("CONNECT ON DATABASE main", &["GRANT CONNECT ON DATABASE"]).await;
    }

    #[rocket::async_test]
    async fn a_wrong_password_is_named_as_the_cause_and_not_repeated() {
        let (listener, url) = listen().await;
        let server = rocket::tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                turn_away(client).await.unwrap();
            }
        });
        let advice = "correct the user and the password in the URL";
        main_is_not_retried_at(&url, &["password authentication failed", advice]).await;
        assert!(!server.is_finished(), "{:?}", server.await);
    }

    #[rocket::async_test]
    async fn an_invalid_url_is_refused_without_repeating_it() {
        main_at(
            &format!("postgres://app:{PASSWORD}@host:port/todos"),
            &["postgres://user:password@host:port/database"],
        )
        .await;
        main_at(
            &format!("postgres://app:{PASSWORD}@127.0.0.1/todos?sslmode=perhaps"),
            &["postgres://user:password@host:port/database"],
        )
        .await;
    }
}

#[rocket::async_test]
async fn a_scheme_without_a_backend_is_refused() {
    main_at(
        &format!("mysql://app:{PASSWORD}@host/todos"),
        &[
            "no backend for `mysql:`",
            "sqlite:path/to/file.db",
            "postgres://",
        ],
    )
    .await;
    main_at(PASSWORD, &["no backend", "sqlite:path/to/file.db"]).await;
}

/// A string in the place of the table would let a source of lower priority, such as the default in
/// `Rocket.toml`, determine the database that is opened.
#[rocket::async_test]
async fn a_url_in_the_place_of_its_table_is_refused_without_repeating_it() {
    let databases = Databases::new(Backend::Sqlite).await;
    let url = format!("postgres://app:{PASSWORD}@host/todos");
    for value in [
        format!(r#"{{main="{url}",audit={{url="{}"}}}}"#, databases.audit),
        url,
    ] {
        let log = refused(&databases, &[("ROCKET_DATABASES", &value)], &[]).await;
        assert!(!log.contains(PASSWORD), "{log}");
    }
}
