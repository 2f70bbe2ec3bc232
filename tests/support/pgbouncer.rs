//! A connection pooler in front of Postgres: pgbouncer, as packaged by Debian.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rocket::tokio::net::TcpStream;

use super::eventually;

/// The pool mode: the unit after which another client may get the same server session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
    Statement,
}

/// A running pgbouncer. Dropping it ends the process.
pub struct PgBouncer {
    pub port: u16,
    process: Child,
    folder: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts a pooler for all databases of the server of `url`, with the user of `url`. `settings`
    /// are lines of its configuration. All other settings have their defaults.
    pub async fn to(url: &str, mode: Mode, settings: &[(&str, &str)]) -> Self {
        let server = Server::of(url);
        let folder = tempfile::tempdir().unwrap();
        // Another program may take the port before pgbouncer does.
        for _ in 0..10 {
            let port = free_port();
            let configuration = configuration(&server, folder.path(), port, mode, settings);
            let process = start(&configuration, &folder.path().join("log"));
            let mut pooler = Self {
                port,
                process,
                folder: tempfile::tempdir().unwrap(),
            };
            if pooler.listens().await {
                pooler.folder = folder;
                return pooler;
            }
        }
        let log = fs::read_to_string(folder.path().join("log"));
        panic!("pgbouncer does not start: {log:?}");
    }

    /// Returns the URL of the same database through the pooler.
    pub fn url(&self, url: &str) -> String {
        let (front, rest) = url.split_once('@').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        format!("{front}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns the pooler's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn listens(&mut self) -> bool {
        let mut listens = false;
        eventually("pgbouncer listens, or ends", async || {
            listens = TcpStream::connect(("127.0.0.1", self.port)).await.is_ok();
            listens || self.process.try_wait().unwrap().is_some()
        })
        .await;
        // If pgbouncer has ended, another program listens on the port.
        listens && self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            println!("--- log of pgbouncer\n{}", self.log());
        }
    }
}

struct Server<'a> {
    user: &'a str,
    password: &'a str,
    host: &'a str,
    port: &'a str,
}

impl<'a> Server<'a> {
    /// `postgres://user:password@host:port/database`
    fn of(url: &'a str) -> Self {
        let (_, rest) = url.split_once("://").unwrap();
        let (login, rest) = rest.split_once('@').unwrap();
        let (address, _) = rest.split_once('/').unwrap();
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = address.split_once(':').unwrap_or((address, "5432"));
        Self {
            user,
            password,
            host,
            port,
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn configuration(
    server: &Server<'_>,
    folder: &Path,
    port: u16,
    mode: Mode,
    settings: &[(&str, &str)],
) -> std::path::PathBuf {
    let Server {
        user,
        password,
        host,
        port: server_port,
    } = server;
    let users = folder.join("users.txt");
    fs::write(&users, format!("\"{user}\" \"{password}\"\n")).unwrap();
    let users = users.display();
    let mode = match mode {
        Mode::Session => "session",
        Mode::Transaction => "transaction",
        Mode::Statement => "statement",
    };
    let mut text = format!(
        "[databases]\n\
         * = host={host} port={server_port}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = trust\n\
         auth_file = {users}\n\
         admin_users = {user}\n\
         pool_mode = {mode}\n"
    );
    for (key, value) in settings {
        text.push_str(&format!("{key} = {value}\n"));
    }
    let file = folder.join("pgbouncer.ini");
    fs::write(&file, text).unwrap();
    file
}

/// Starts pgbouncer in the foreground. It refuses to run as root, so root runs it as `nobody`.
fn start(configuration: &Path, log: &Path) -> Child {
    let log = fs::File::create(log).unwrap();
    let mut command = Command::new("pgbouncer");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.args(["-u", "nobody"]);
        let folder = configuration.parent().unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    command
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("pgbouncer was not found; run tests/run, which installs it")
}
