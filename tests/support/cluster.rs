//! A Postgres cluster for one test, which can crash, fail over, and have its clock set.
//!
//! `tests/run` starts one server that all tests share. A [`Cluster`] belongs to a single test and
//! has `fsync` on:
//!
//! ```ignore
//! let mut primary = Cluster::start().await;
//! let url = primary.create_database("main").await;
//! let mut standby = primary.standby().await;
//! primary.crash().await; // loses what was not flushed
//! primary.restart().await; // on the same port
//! primary.kill().await;
//! standby.promote().await; // `standby.url("main")`
//! ```
//!
//! It listens on 127.0.0.1 only. Dropping it ends the server and removes its files, also after a
//! panic. A separate watchdog process does the same if the test's process is killed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;

/// How long the server may take to start, stop, or do anything else that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends every server in the folder `$1` and removes the folder, as soon as standard input is
/// closed: the test has dropped the cluster, or its process is gone. A server gets SIGQUIT before
/// SIGKILL, so that it can release its shared memory.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r _
for pid_file in "$1"/data/postmaster.pid; do
    pid=$(head -n 1 "$pid_file" 2>/dev/null)
    if [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$1"; then
        kill -QUIT "$pid"
        kill -CONT "$pid"
        pkill -CONT -P "$pid"
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            [ -s "$pid_file" ] || break
            sleep 0.1
        done
        if [ -s "$pid_file" ]; then
            pkill -KILL -P "$pid"
            kill -KILL "$pid"
        fi
    fi
    segment=$(sed -n 7p "$pid_file" 2>/dev/null | awk '{ print $2 }')
    [ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
    rm -f "/dev/shm/faketime_shm_$pid" "/dev/shm/sem.faketime_sem_$pid"
done
rm -rf -- "$1"
"#;

/// Settings that are appended to the `postgresql.conf` of initdb. Socket and shared memory are in
/// the data directory, so that removing the folder removes them.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = '.'
max_connections = 100
max_prepared_transactions = 50
shared_buffers = '16MB'
dynamic_shared_memory_type = 'mmap'
fsync = on
max_wal_senders = 4
wal_keep_size = '64MB'
";

/// A server, running or crashed. Dropping it ends the server and removes its folder.
pub struct Cluster {
    folder: PathBuf,
    binaries: PathBuf,
    become_server: Vec<String>,
    port: u16,
    /// `None` while it is down.
    postmaster: Option<Child>,
    /// Whether the file `clock` in the folder sets the server's clock.
    clock_is_set: bool,
    watchdog: Child,
    watchdog_stdin: Option<ChildStdin>,
}

impl Cluster {
    /// Starts a new, empty cluster. Its superuser `postgres` needs no password.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts a new cluster with further lines of `postgresql.conf`.
    pub async fn start_with(settings: &str) -> Self {
        let mut cluster = Self::prepare();
        let data = cluster.data();
        cluster.run(
            "initdb",
            &[
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                &format!("--pgdata={}", data.display()),
            ],
        );
        let path = data.join("postgresql.conf");
        let mut configuration = fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(configuration, "{SETTINGS}{settings}").unwrap();
        cluster.start_on_a_free_port().await;
        cluster
    }

    /// Starts a standby of this server, with asynchronous replication. It has everything that was
    /// written before this call, and can be promoted.
    pub async fn standby(&self) -> Self {
        let mut standby = Self::prepare();
        standby.run(
            "pg_basebackup",
            &[
                "--host=127.0.0.1",
                &format!("--port={}", self.port),
                "--username=postgres",
                &format!("--pgdata={}", standby.data().display()),
                "--wal-method=stream",
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--no-sync",
            ],
        );
        standby.start_on_a_free_port().await;
        let mut admin = self.admin().await;
        wait_until("the standby streams", async || {
            sqlx::query_scalar("SELECT count(*) > 0 FROM pg_stat_replication")
                .fetch_one(&mut admin)
                .await
                .unwrap()
        })
        .await;
        standby
    }

    /// Creates a database and returns its URL.
    pub async fn create_database(&self, name: &str) -> String {
        let create = format!("CREATE DATABASE {name}");
        let mut admin = self.admin().await;
        admin.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        self.url(name)
    }

    /// Returns the URL of a database. It is the same before and after a crash.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Opens a connection to the database `postgres`.
    pub async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.url("postgres")).await.unwrap()
    }

    /// Returns the server's log.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Ends all server processes at once, as after a panic of the server (`pg_ctl stop -m
    /// immediate`). What was not flushed is lost, and the clients see their connections close.
    pub async fn crash(&mut self) {
        let mut postmaster = self.postmaster.take().expect("the server is up");
        let children = children_of(postmaster.id());
        signal("QUIT", &[postmaster.id()]);
        // A stopped process would not receive the signal to end.
        signal("CONT", &children);
        ended(&mut postmaster).await;
    }

    /// Kills all server processes at the same moment (SIGKILL), so that none can clean up.
    pub async fn kill(&mut self) {
        let mut postmaster = self.postmaster.take().expect("the server is up");
        // A stopped postmaster cannot start further processes.
        signal("STOP", &[postmaster.id()]);
        let children = children_of(postmaster.id());
        signal("KILL", &children);
        signal("KILL", &[postmaster.id()]);
        ended(&mut postmaster).await;
        wait_until("the server's processes are gone", async || {
            children.iter().all(|id| !is_running(*id))
        })
        .await;
    }

    /// Shuts the server down (`pg_ctl stop -m fast`). Nothing is lost.
    pub async fn stop(&mut self) {
        let mut postmaster = self.postmaster.take().expect("the server is up");
        signal("INT", &[postmaster.id()]);
        ended(&mut postmaster).await;
    }

    /// Starts the server again on the same port, after [`stop`](Self::stop) if it is running.
    /// Returns when recovery is done and the server accepts connections.
    pub async fn restart(&mut self) {
        if self.postmaster.is_some() {
            self.stop().await;
        }
        if let Err(log) = self.try_start().await {
            panic!("the server did not start again:\n{log}");
        }
    }

    /// Makes a standby the primary. Returns when it accepts writes.
    pub async fn promote(&mut self) {
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote(TRUE, 60)")
            .fetch_one(&mut self.admin().await)
            .await
            .unwrap();
        assert!(promoted, "the standby was not promoted:\n{}", self.log());
    }

    /// Waits until `standby` has replayed everything that this server has written so far.
    pub async fn wait_for(&self, standby: &Self) {
        let position: String = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut self.admin().await)
            .await
            .unwrap();
        let mut admin = standby.admin().await;
        wait_until("the standby has caught up", async || {
            sqlx::query_scalar("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn")
                .bind(&position)
                .fetch_one(&mut admin)
                .await
                .unwrap()
        })
        .await;
    }

    /// Sends a signal by its name (`STOP`, `CONT`, `KILL`) to each process that serves a client.
    pub fn signal_backends(&self, name: &str) {
        self.signal_processes(name, |title| title.contains("127.0.0.1("));
    }

    /// Sends a signal to each server process whose title `matches`. Examples of titles:
    /// `postgres: walwriter`,
    /// `postgres: walsender postgres 127.0.0.1(40412) streaming 0/3000148`,
    /// `postgres: postgres main 127.0.0.1(40414) idle in transaction`.
    pub fn signal_processes(&self, name: &str, matches: impl Fn(&str) -> bool) {
        let mut ids = children_of(self.postmaster_id());
        ids.retain(|id| matches(&title(*id)));
        signal(name, &ids);
    }

    /// Stops the processes that send to standbys. The standbys lack everything written after this.
    pub fn stop_replication(&self) {
        self.signal_processes("STOP", |title| title.contains("walsender"));
    }

    /// Stops all server processes, as on a host that hangs: connections stay open without replies.
    pub fn freeze(&self) {
        let postmaster = self.postmaster_id();
        signal("STOP", &[postmaster]);
        signal("STOP", &children_of(postmaster));
    }

    /// Resumes all server processes.
    pub fn thaw(&self) {
        let postmaster = self.postmaster_id();
        signal("CONT", &children_of(postmaster));
        signal("CONT", &[postmaster]);
    }

    /// Shifts the server's clock by `offset`, such as `-1h` or `+90s`. This takes effect
    /// immediately if the server was started with an offset (`+0s` is enough), otherwise at its
    /// next start.
    pub fn set_clock(&mut self, offset: &str) {
        // The file is read whenever the server reads the clock, so it must be replaced atomically.
        fs::write(self.folder.join("clock.new"), format!("{offset}\n")).unwrap();
        fs::rename(self.folder.join("clock.new"), self.folder.join("clock")).unwrap();
        self.clock_is_set = true;
    }

    fn postmaster_id(&self) -> u32 {
        self.postmaster.as_ref().expect("the server is up").id()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Creates a folder that the server's user owns, and starts the watchdog that removes it.
    fn prepare() -> Self {
        let binaries = server_binaries();
        let (become_server, owner) = server_user();
        let folder = server_folder(&become_server, owner);
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal to the test's process group must not end the watchdog.
            .process_group(0)
            .spawn()
            .unwrap();
        let watchdog_stdin = watchdog.stdin.take();
        Self {
            folder,
            binaries,
            become_server,
            port: 0,
            postmaster: None,
            clock_is_set: false,
            watchdog,
            watchdog_stdin,
        }
    }

    /// Returns a command that runs as the server's user, in the folder.
    fn command(&self, program: &Path) -> Command {
        let mut command = as_server(&self.become_server, program);
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Runs one of the server's programs, which must succeed.
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.command(&self.binaries.join(program));
        let output = command.args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} failed:\n{errors}");
    }

    async fn start_on_a_free_port(&mut self) {
        for _ in 0..20 {
            // Below the range from which Linux assigns ports, so that no test server on port 0 and
            // no outgoing connection takes this port while the server is down.
            self.port = fastrand::u16(20_000..32_000);
            match self.try_start().await {
                Ok(()) => return,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("the server did not start:\n{log}"),
            }
        }
        panic!("no free port was found for the server");
    }

    /// Starts the server and waits until it accepts connections. Returns its log if it ends
    /// instead.
    async fn try_start(&mut self) -> Result<(), String> {
        let log = fs::File::create(self.folder.join("server.log")).unwrap();
        let mut command = self.command(Path::new("env"));
        if self.clock_is_set {
            // Set here, by `env`, so that it does not apply to the command that changes the user.
            let clock = self.folder.join("clock");
            command
                .arg(format!("LD_PRELOAD={}", faketime_library().display()))
                .arg(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()))
                .arg("FAKETIME_NO_CACHE=1")
                .arg("FAKETIME_DONT_FAKE_MONOTONIC=1");
        }
        command
            .arg(self.binaries.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        let postmaster = self.postmaster.insert(command.spawn().unwrap());
        let (id, pid_file) = (postmaster.id(), self.folder.join("data/postmaster.pid"));
        let mut waited = Duration::ZERO;
        loop {
            if self
                .postmaster
                .as_mut()
                .unwrap()
                .try_wait()
                .unwrap()
                .is_some()
            {
                self.postmaster = None;
                return Err(self.log());
            }
            if is_ready(&pid_file, id) {
                return Ok(());
            }
            assert!(
                waited < PATIENCE,
                "the server does not start:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(10)).await;
            waited += Duration::from_millis(10);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "--- log of the server on port {}\n{}",
                self.port,
                self.log()
            );
        }
        drop(self.watchdog_stdin.take());
        let _ = self.watchdog.wait();
        if let Some(mut postmaster) = self.postmaster.take() {
            let _already_gone = postmaster.kill();
            let _ = postmaster.wait();
        }
    }
}

/// Reads `postmaster.pid`: line 1 is the process id, line 8 the status of the server.
fn is_ready(pid_file: &Path, postmaster: u32) -> bool {
    let file = fs::read_to_string(pid_file).unwrap_or_default();
    let mut lines = file.lines().map(str::trim);
    lines.next() == Some(&postmaster.to_string())
        && matches!(lines.nth(6), Some("ready" | "standby"))
}

async fn ended(postmaster: &mut Child) {
    let id = postmaster.id();
    wait_until("the server has ended", async || {
        postmaster.try_wait().unwrap().is_some()
    })
    .await;
    // libfaketime leaves these files behind if its process was killed.
    for left in [
        format!("faketime_shm_{id}"),
        format!("sem.faketime_sem_{id}"),
    ] {
        let _none = fs::remove_file(Path::new("/dev/shm").join(left));
    }
}

async fn wait_until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let mut waited = Duration::ZERO;
    while !holds().await {
        assert!(waited < PATIENCE, "not in {PATIENCE:?}: {condition}");
        sleep(Duration::from_millis(10)).await;
        waited += Duration::from_millis(10);
    }
}

fn signal(name: &str, ids: &[u32]) {
    if ids.is_empty() {
        return;
    }
    let ids = ids.iter().map(u32::to_string);
    // The status is ignored: a process may have ended already.
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .args(ids)
        .stderr(Stdio::null())
        .status();
    assert!(sent.is_ok(), "the program `kill` was not found");
}

/// Returns the state and the parent of a process.
fn status(id: u32) -> Option<(char, u32)> {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may contain any character.
    let (_, rest) = status.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Returns `false` for a zombie too: a process that has ended but was not waited for yet.
fn is_running(id: u32) -> bool {
    status(id).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| status(*id).is_some_and(|(_, of)| of == parent))
        .collect()
}

fn title(id: u32) -> String {
    let title = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&title).replace('\0', " ")
}

/// Returns the folder of the newest server's binaries. Debian keeps them outside PATH, in one
/// folder per version.
fn server_binaries() -> PathBuf {
    let version = |path: &PathBuf| -> u32 {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.parse().ok()).unwrap_or(0)
    };
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| {
            versions
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect()
        })
        .unwrap_or_default();
    versions.sort_by_key(version);
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = versions
        .into_iter()
        .rev()
        .map(|version| version.join("bin"));
    folders
        .chain(std::env::split_paths(&in_path))
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .expect("no initdb and postgres in /usr/lib/postgresql/*/bin or PATH")
}

/// Returns a command prefix that changes the user, and the ids of that user and group. Both are
/// empty unless the tests run as root: initdb and postgres refuse to run as root.
fn server_user() -> (Vec<String>, Option<(u32, u32)>) {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return (Vec::new(), None);
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |user: &str| -> Option<(u32, u32)> {
        let line = users
            .lines()
            .find(|line| line.starts_with(&format!("{user}:")))?;
        let fields: Vec<&str> = line.split(':').collect();
        Some((fields[2].parse().ok()?, fields[3].parse().ok()?))
    };
    let (user, group) = ids("postgres").or_else(|| ids("nobody")).unwrap();
    let words = [
        "setpriv",
        "--reuid",
        &user.to_string(),
        "--regid",
        &group.to_string(),
    ];
    let mut prefix = words.map(str::to_owned).to_vec();
    prefix.extend(["--clear-groups".to_owned(), "--".to_owned()]);
    (prefix, Some((user, group)))
}

/// Creates a folder in the temporary directory, or in /tmp if the server's user cannot write there.
fn server_folder(become_server: &[String], owner: Option<(u32, u32)>) -> PathBuf {
    for parent in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        let folder = tempfile::Builder::new()
            .prefix("rocket_tx.")
            .tempdir_in(parent)
            .unwrap();
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let mut test = as_server(become_server, Path::new("test"));
        test.arg("-w").arg(folder.path()).current_dir("/");
        if test.status().unwrap().success() {
            return folder.keep();
        }
    }
    panic!("no temporary directory that the server's user can write to");
}

/// Returns a command that runs as the server's user. Its messages are in English because tests read
/// them.
fn as_server(become_server: &[String], program: &Path) -> Command {
    let mut line = become_server
        .iter()
        .map(AsRef::as_ref)
        .chain([program.as_os_str()]);
    let mut command = Command::new(line.next().unwrap_or(program.as_os_str()));
    command.args(line).env("LC_ALL", "C");
    command
}

/// Finds the library that the program `faketime` preloads. It is used directly because the program
/// has no option to read the clock from a file.
fn faketime_library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap();
    let folders = folders.filter_map(|entry| Some(entry.ok()?.path()));
    folders
        .map(|folder| folder.join("faketime/libfaketime.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is not installed")
}
