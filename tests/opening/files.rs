//! SQLite files that cannot be opened, and the error that the launch fails with.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sqlx::{ConnectOptions, Executor};

use super::refused;
use crate::support::{Backend, Databases, In, Starting};

/// Returns two databases, of which `main` has the given URL.
async fn main_at(url: impl FnOnce(&Path) -> String) -> Databases {
    let mut databases = Databases::new(Backend::Sqlite).await;
    databases.main = url(databases.folder());
    databases
}

/// Returns the command to put in front of a program so that file permissions apply to it.
///
/// Permissions do not apply to root. For root, the command therefore drops that privilege.
fn without_privilege(folder: &Path) -> &'static [&'static str] {
    const UNPRIVILEGED: [&str; 4] = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-all",
        "--",
    ];

    let probe = folder.join("probe");
    fs::write(&probe, "").unwrap();
    fs::set_permissions(&probe, Permissions::from_mode(0o444)).unwrap();
    if OpenOptions::new().append(true).open(&probe).is_err() {
        return &[];
    }
    let mut append = Command::new(UNPRIVILEGED[0]);
    append.args(&UNPRIVILEGED[1..]);
    append.args(["sh", "-c", r#"printf x >> "$0""#]).arg(&probe);
    let output = append.output().expect("setpriv (util-linux) is needed");
    let unchanged = fs::read(&probe).unwrap().is_empty();
    assert!(
        !output.status.success() && unchanged,
        "this user writes to a read-only file, with and without `{}`; run as another user",
        UNPRIVILEGED.join(" ")
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("ermission denied"),
        "the probe failed: {error}"
    );
    &UNPRIVILEGED
}

/// Checks that a start fails with these permissions on the file (if there is one) and its folder.
async fn cannot_be_written(file: Option<&'static str>, mode: u32, folder_mode: u32) {
    let databases = main_at(|folder| format!("sqlite:{}/own/main.db", folder.display())).await;
    let wrapper = without_privilege(databases.folder());
    let folder = databases.folder().join("own");
    fs::create_dir(&folder).unwrap();
    if let Some(statements) = file {
        databases.execute(In::Main, statements).await;
        // If a WAL already existed, SQLite would not need to write to the folder.
        assert!(!folder.join("main.db-wal").exists());
        fs::set_permissions(folder.join("main.db"), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(&folder, Permissions::from_mode(folder_mode)).unwrap();

    let databases = Arc::new(databases);
    let starting = Starting::new(Arc::clone(&databases), wrapper, &[]);
    let ended = starting.launched().await;
    // Makes it possible to remove the folder.
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let Err((status, log)) = ended else {
        panic!("the service launched on {file:?} {mode:o} in {folder_mode:o}");
    };
    assert_eq!(status.code(), Some(1), "{log}");
    for text in [
        "`databases.main`",
        "main.db cannot be written; give this process write permission on the file and on its folder",
    ] {
        assert!(log.contains(text), "{text:?} is missing from\n{log}");
    }
}

mod sqlite {
    use super::*;

    const ROLLBACK_MODE: &str = "CREATE TABLE before (x)";
    const WAL: &str = "PRAGMA journal_mode = WAL; CREATE TABLE before (x)";

    #[rocket::async_test]
    async fn a_file_that_is_no_database_is_refused_and_not_changed() {
        for content in ["not a database", &"not a database either. ".repeat(400)] {
            let databases = Databases::new(Backend::Sqlite).await;
            let file = databases.folder().join("main.db");
            fs::write(&file, content).unwrap();
            refused(
                &databases,
                &[],
                &["main.db is not a SQLite database", "choose another path"],
            )
            .await;
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
    }

    #[rocket::async_test]
    async fn a_directory_is_refused() {
        let databases = main_at(|folder| format!("sqlite:{}", folder.display())).await;
        refused(
            &databases,
            &[],
            &["`url`", "is a directory; name a file in it"],
        )
        .await;
    }

    #[rocket::async_test]
    async fn a_file_that_may_not_be_written_is_refused() {
        cannot_be_written(Some(ROLLBACK_MODE), 0o444, 0o755).await;
        cannot_be_written(Some(WAL), 0o444, 0o755).await;
    }

    #[rocket::async_test]
    async fn a_file_in_a_folder_that_may_not_be_written_is_refused() {
        cannot_be_written(Some(ROLLBACK_MODE), 0o644, 0o555).await;
        cannot_be_written(Some(WAL), 0o644, 0o555).await;
        cannot_be_written(None, 0, 0o555).await;
    }

    #[rocket::async_test]
    async fn a_missing_folder_is_created() {
        let databases = main_at(|folder| format!("sqlite:{}/a/b/main.db", folder.display())).await;
        let service = crate::support::Service::on(Arc::new(databases), &[]).await;
        assert_eq!(service.new_todo("a", "").await.status, 201);
        assert!(service.databases.folder().join("a/b/main.db").is_file());
    }

    #[rocket::async_test]
    async fn a_folder_that_cannot_be_created_is_refused() {
        let databases =
            main_at(|folder| format!("sqlite:{}/file/deep/main.db", folder.display())).await;
        fs::write(databases.folder().join("file"), "in the way").unwrap();
        refused(
            &databases,
            &[],
            &[
                "`url`",
                "cannot create the folder",
                "file/deep",
                "choose another path",
            ],
        )
        .await;
    }

    #[rocket::async_test]
    async fn a_database_in_memory_is_refused() {
        for url in [
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite:main.db?mode=memory",
        ] {
            let databases = main_at(|_| url.into()).await;
            refused(&databases, &[], &["`url`", "in-memory", "use a file"]).await;
        }
    }

    /// With a shared cache, readers could see uncommitted rows.
    #[rocket::async_test]
    async fn a_shared_cache_is_refused() {
        let databases =
            main_at(|folder| format!("sqlite:{}/main.db?cache=shared", folder.display())).await;
        refused(&databases, &[], &["`url`", "cache=shared", "leave it out"]).await;
    }

    /// For such a URL, SQLite opens a separate temporary database for each connection.
    #[rocket::async_test]
    async fn a_url_without_a_file_is_refused() {
        for url in ["sqlite:", "sqlite://"] {
            let databases = main_at(|_| url.into()).await;
            refused(
                &databases,
                &[],
                &["`url`", "names no file", "sqlite:path/to/file.db"],
            )
            .await;
        }
    }

    #[rocket::async_test]
    async fn a_file_that_is_opened_for_reading_only_is_refused() {
        let databases =
            main_at(|folder| format!("sqlite:{}/main.db?mode=ro", folder.display())).await;
        let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(databases.folder().join("main.db"))
            .create_if_missing(true)
            .connect()
            .await
            .unwrap();
        connection.execute(WAL).await.unwrap();
        drop(connection);
        refused(&databases, &[], &["`url`", "mode=ro"]).await;
    }
}
