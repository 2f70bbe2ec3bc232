//! A connection pooler in front of Postgres: pgbouncer, as Debian has it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rocket::tokio::net::TcpStream;

use super::eventually;

/// When a server's session is given to another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
    Statement,
}

/// Dropping it ends it.
pub struct PgBouncer {
    pub port: u16,
    process: Child,
    folder: tempfile::TempDir,
}

impl PgBouncer {
    /// Leads to every database of the server of `url`, as the user that `url` names. `settings` are
    /// lines of its configuration; the rest is as it is by default.
    pub async fn to(url: &str, mode: Mode, settings: &[(&str, &str)]) -> Self {
        let server = Server::of(url);
        let folder = tempfile::tempdir().unwrap();
        // The port may be taken before pgbouncer has it.
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

    /// The same database, by way of the pooler.
    pub fn url(&self, url: &str) -> String {
        let (front, rest) = url.split_once('@').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        format!("{front}@127.0.0.1:{}/{database}", self.port)
    }

    /// What it has logged.
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
        // Another program may have the port.
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

/// In the foreground; it refuses to run as root.
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
        .expect("there is no pgbouncer; run tests/run, which installs it")
}
