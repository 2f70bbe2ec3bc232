//! Values that cannot be understood stop the launch, and the message names the key.

use rocket::{get, routes};
use rocket_tx::{Error, Settlement, Tx, with_backend};

use crate::support::{Backend, Databases, Main, Service, Stage};

/// The service must refuse a variable, and say all of these.
async fn refused(variable: (&str, &str), reasons: &[&str]) {
    let databases = Databases::new(Backend::Sqlite).await;
    let (status, log) = Service::refused(&databases, &[variable]).await;
    assert_eq!(status.code(), Some(1), "{variable:?}: {log}");
    // Keys are written as in the environment that they came from.
    let said = log.to_lowercase();
    for reason in reasons {
        assert!(said.contains(reason), "{reason:?} is missing from\n{log}");
    }
}

/// As `refused`, for a key of `databases.main`, beside its URL.
async fn refused_of_main(key: &str, value: &str) {
    let databases = Databases::new(Backend::Sqlite).await;
    let table = format!(
        r#"{{main={{url="{}",{key}={value}}},audit={{url="{}"}}}}"#,
        databases.main, databases.audit
    );
    refused(("ROCKET_DATABASES", &table), &["`databases.main`", key]).await;
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn an_unknown_key_of_a_database_stops_the_launch() {
        refused_of_main("busy_timout", "5").await;
    }

    #[rocket::async_test]
    async fn a_duration_that_is_none_stops_the_launch() {
        for value in [
            r#""soon""#,
            r#""5 parsecs""#,
            r#""5""#,
            "-1",
            "1.5",
            "true",
            // Past what SQLite and Postgres can count in milliseconds.
            r#""60d""#,
            "18446744073709551615",
        ] {
            refused_of_main("busy_timeout", value).await;
        }
        for key in [
            "connect_timeout",
            "idle_timeout",
            "statement_timeout",
            "idle_in_transaction_timeout",
        ] {
            refused_of_main(key, r#""soon""#).await;
        }
    }

    #[rocket::async_test]
    async fn other_values_of_a_database_that_make_no_sense_stop_the_launch() {
        refused_of_main("synchronous", r#""sometimes""#).await;
        refused_of_main("max_connections", r#""many""#).await;
        refused_of_main("max_connections", "-1").await;
    }

    #[rocket::async_test]
    async fn a_database_without_a_url_stops_the_launch() {
        let databases = Databases::new(Backend::Sqlite).await;
        let rocket = rocket::custom(
            rocket::figment::Figment::from(rocket::Config::debug_default())
                .merge(("log_level", "off"))
                .merge(("databases.audit.url", &databases.audit)),
        );
        let rocket = rocket.attach(rocket_tx::db::init::<Main>());
        let log = crate::support::launch::refused(rocket).await;
        assert!(
            log.contains("`databases.main`: missing field `url`"),
            "{log}"
        );
    }

    #[rocket::async_test]
    async fn settings_of_the_service_that_make_no_sense_stop_the_launch() {
        for (variable, key) in [
            ("ROCKET_SETTLE_TIMEOUT", "settle_timeout"),
            ("ROCKET_SLOW_TRANSACTION", "slow_transaction"),
            ("ROCKET_READ_IDLE_TIMEOUT", "read_idle_timeout"),
            ("ROCKET_DOWNSTREAM_TIMEOUT", "downstream_timeout"),
            ("ROCKET_FAULTS", "faults"),
            ("ROCKET_DOWNSTREAM_URL", "downstream_url"),
        ] {
            refused((variable, "maybe"), &[key]).await;
        }
        refused(("ROCKET_SETTLE_TIMEOUT", "-1"), &["settle_timeout"]).await;
        // Clients that take their bodies well would be cut off.
        for value in ["0", "\"99ms\""] {
            refused(
                ("ROCKET_READ_IDLE_TIMEOUT", value),
                &["`read_idle_timeout`", "100ms or longer"],
            )
            .await;
        }
        refused(
            ("ROCKET_READ_IDLE_TIMEOUT", "18446744073709551615"),
            &["read_idle_timeout", "24 days"],
        )
        .await;
        // URLs both, but of nothing that can be called.
        for url in ["localhost:9000/share", "ftp://localhost/share"] {
            refused(
                ("ROCKET_DOWNSTREAM_URL", url),
                &["`downstream_url`", "http://host:port/path"],
            )
            .await;
        }
    }

    #[rocket::async_test]
    async fn durations_are_seconds_or_say_their_unit() {
        #[get("/busy_timeout")]
        async fn busy_timeout(mut tx: Tx<Main>) -> Result<String, Error> {
            let millis: i64 = with_backend!(tx, |db| {
                sqlx::query_scalar("PRAGMA busy_timeout")
                    .fetch_one(db)
                    .await?
            });
            Ok(millis.to_string())
        }

        for (value, millis) in [
            ("7", "7000"),
            ("\"7s\"", "7000"),
            ("\"50ms\"", "50"),
            ("\"1m 30s\"", "90000"),
            ("0", "0"),
        ] {
            let settings = [
                ("databases.main.busy_timeout", value),
                ("databases.main.connect_timeout", "\"3s\""),
                ("databases.audit.connect_timeout", "3"),
                ("settle_timeout", "4"),
                ("slow_transaction", "\"250ms\""),
            ];
            let stage = Stage::with(Backend::Sqlite, &settings, |rocket| {
                rocket
                    .attach(Settlement::new())
                    .mount("/", routes![busy_timeout])
            })
            .await;
            assert_eq!(stage.send("GET /busy_timeout").await.body, millis);
        }
    }
}
