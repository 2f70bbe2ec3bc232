//! Invalid values stop the launch, and the message names the key.

use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};
use rocket::{get, routes};
use rocket_tx::{Error, Settlement, Tx, with_backend};

use crate::support::{Backend, Databases, Main, Service, Stage};

/// The service must refuse the variable, and its log must contain all of `reasons`.
async fn refused(variable: (&str, &str), reasons: &[&str]) {
    let databases = Databases::new(Backend::Sqlite).await;
    let (status, log) = Service::refused(&databases, &[variable]).await;
    assert_eq!(status.code(), Some(1), "{variable:?}: {log}");
    // Keys are spelled as in their source. In environment variables they are in upper case.
    let lowercase = log.to_lowercase();
    for reason in reasons {
        assert!(
            lowercase.contains(reason),
            "{reason:?} is missing from\n{log}"
        );
    }
}

/// Like `refused`, for a key of `databases.main`, whose URL is also set.
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
    async fn an_invalid_duration_stops_the_launch() {
        for value in [
            r#""soon""#,
            r#""5 parsecs""#,
            r#""5""#,
            "-1",
            "1.5",
            "true",
            // More milliseconds than SQLite and Postgres accept.
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
    async fn other_invalid_values_of_a_database_stop_the_launch() {
        refused_of_main("synchronous", r#""sometimes""#).await;
        refused_of_main("max_connections", r#""many""#).await;
        refused_of_main("max_connections", "-1").await;
    }

    #[rocket::async_test]
    async fn a_database_without_a_url_stops_the_launch() {
        let databases = Databases::new(Backend::Sqlite).await;
        let rocket = rocket::custom(
            Figment::from(rocket::Config::debug_default())
                .merge(("log_level", "off"))
                .merge(("databases.audit.url", &databases.audit)),
        );
        let rocket = rocket.attach(rocket_tx::db::init::<Main>());
        let log = crate::support::launch::refused(rocket).await;
        assert!(log.contains("[default.databases.main]"), "{log}");
    }

    /// Most often the service was started in another folder, or with another profile.
    #[rocket::async_test]
    async fn a_missing_table_is_reported_with_the_file_that_was_read() {
        const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

        let off = ("log_level", "off");
        let here =
            format!("the file that ROCKET_CONFIG names, in the folder {FOLDER} and above it");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Rocket.toml");
        std::fs::write(&file, "[staging.databases.main]\nurl = \"sqlite:x.db\"").unwrap();
        let read = format!("the file is {}", file.display());
        let none = Toml::file("this_name_is_not_a_file.toml").nested();
        let staging = "the profile is `debug`, and the table is in the profile `staging`";
        for (figment, expected, unexpected) in [
            (Figment::from(none), &*here, "profile"),
            (
                Figment::from(Toml::file(&file).nested()),
                &*read,
                "no file was",
            ),
            (
                Figment::from(Toml::file(&file).nested()),
                staging,
                "no file was",
            ),
            // The launch code reads no file.
            (Figment::new(), "in the configuration; add", "file"),
        ] {
            let config = Figment::from(rocket::Config::debug_default());
            let rocket = rocket::custom(config.merge(figment).merge(off).select("debug"));
            let rocket = rocket.attach(rocket_tx::db::init::<Main>());
            let log = crate::support::launch::refused(rocket).await;
            assert!(log.contains(expected), "{expected}: {log}");
            assert!(!log.contains(unexpected), "{unexpected}: {log}");
        }
    }

    #[rocket::async_test]
    async fn invalid_settings_of_the_service_stop_the_launch() {
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
        // With shorter limits, clients that read well would be disconnected.
        for value in ["0", "\"99ms\""] {
            refused(
                ("ROCKET_READ_IDLE_TIMEOUT", value),
                &["`read_idle_timeout`", "at least 100ms"],
            )
            .await;
        }
        refused(
            ("ROCKET_READ_IDLE_TIMEOUT", "18446744073709551615"),
            &["read_idle_timeout", "24 days"],
        )
        .await;
        // Both are valid URLs, but not HTTP URLs.
        for url in ["localhost:9000/share", "ftp://localhost/share"] {
            refused(
                ("ROCKET_DOWNSTREAM_URL", url),
                &["`downstream_url`", "http://host:port/path"],
            )
            .await;
        }
    }

    #[rocket::async_test]
    async fn durations_are_seconds_or_have_a_unit() {
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
