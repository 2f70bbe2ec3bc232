//! A Postgres cluster of a test's own: one that can crash, fail over, and have its clock set.
//!
//! `tests/run` starts one server that all tests share. This one is a test's alone, with `fsync` on:
//!
//! ```ignore
//! let mut primary = Cluster::start().await;
//! let url = primary.create_database("main").await;
//! let mut standby = primary.standby().await;
//! primary.crash().await; // what was not flushed is lost
//! primary.restart().await; // on the same port
//! primary.kill().await;
//! standby.promote().await; // `standby.url("main")`
//! ```
//!
//! It listens on 127.0.0.1 only. It is gone when it is dropped, after a panic too; and a process of
//! its own ends it even if the test's process is killed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;

/// How long the server may take for anything that is asked of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends every server below `$1` and removes the folder, when its standard input ends: the test has
/// dropped the cluster, or is no more. A server is asked first, because it then gives shared memory
/// back.
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

/// What is different from `postgresql.conf` as initdb writes it. Socket and shared memory are in the
/// data directory, which goes away as a whole.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = '.'
max_connections = 100
shared_buffers = '16MB'
dynamic_shared_memory_type = 'mmap'
fsync = on
max_wal_senders = 4
wal_keep_size = '64MB'
";

/// A server, or a crashed one. Dropping it ends it and removes its folder.
pub struct Cluster {
    folder: PathBuf,
    binaries: PathBuf,
    become_server: Vec<String>,
    port: u16,
    /// `None` while it is down.
    postmaster: Option<Child>,
    /// Whether its clock is set by a file of its folder.
    clock_is_set: bool,
    watchdog: Child,
    watchdog_waits: Option<ChildStdin>,
}

impl Cluster {
    /// A new, empty cluster. Its superuser is `postgres`, who needs no password.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further lines of `postgresql.conf`.
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

    /// A standby of this server, which follows it asynchronously and can be promoted. Everything up
    /// to now is on it.
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

    /// Makes the database, and returns its URL.
    pub async fn create_database(&self, name: &str) -> String {
        let create = format!("CREATE DATABASE {name}");
        let mut admin = self.admin().await;
        admin.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        self.url(name)
    }

    /// The same before and after a crash.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection to the database `postgres`.
    pub async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.url("postgres")).await.unwrap()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Has all its processes end at once, as after a panic of the server (`pg_ctl stop -m
    /// immediate`). What was not flushed is lost; its clients see their connections close.
    pub async fn crash(&mut self) {
        let mut postmaster = self.postmaster.take().expect("the server is up");
        let children = children_of(postmaster.id());
        signal("QUIT", &[postmaster.id()]);
        // One that is stopped would not hear of it.
        signal("CONT", &children);
        ended(&mut postmaster).await;
    }

    /// Kills all its processes at the same moment (SIGKILL): none does anything any more.
    pub async fn kill(&mut self) {
        let mut postmaster = self.postmaster.take().expect("the server is up");
        // Stopped, it starts no others.
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

    /// Ends it in order (`pg_ctl stop -m fast`): nothing is lost.
    pub async fn stop(&mut self) {
        let mut postmaster = self.postmaster.take().expect("the server is up");
        signal("INT", &[postmaster.id()]);
        ended(&mut postmaster).await;
    }

    /// Starts it again, on the same port; ends it in order before, if it is up. Returns when it
    /// takes connections, after recovery.
    pub async fn restart(&mut self) {
        if self.postmaster.is_some() {
            self.stop().await;
        }
        if let Err(log) = self.try_start().await {
            panic!("the server did not start again:\n{log}");
        }
    }

    /// Makes a standby a primary; returns when it can be written to.
    pub async fn promote(&mut self) {
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote(TRUE, 60)")
            .fetch_one(&mut self.admin().await)
            .await
            .unwrap();
        assert!(promoted, "the standby was not promoted:\n{}", self.log());
    }

    /// Waits until a standby has replayed what this server has written so far.
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

    /// Sends a signal to the server's processes whose title `is_meant`: `postgres: walwriter`,
    /// `postgres: walsender postgres 127.0.0.1(40412) streaming 0/3000148`,
    /// `postgres: postgres main 127.0.0.1(40414) idle in transaction`.
    pub fn signal_processes(&self, name: &str, is_meant: impl Fn(&str) -> bool) {
        let mut ids = children_of(self.postmaster_id());
        ids.retain(|id| is_meant(&title(*id)));
        signal(name, &ids);
    }

    /// Stops whatever sends to standbys: from now on they lack what this server writes.
    pub fn stop_replication(&self) {
        self.signal_processes("STOP", |title| title.contains("walsender"));
    }

    /// Stops all its processes, as a host that hangs: connections stay open, and nobody answers.
    pub fn freeze(&self) {
        let postmaster = self.postmaster_id();
        signal("STOP", &[postmaster]);
        signal("STOP", &children_of(postmaster));
    }

    /// Lets all its processes go on.
    pub fn thaw(&self) {
        let postmaster = self.postmaster_id();
        signal("CONT", &children_of(postmaster));
        signal("CONT", &[postmaster]);
    }

    /// Sets its clock off by `offset`, `-1h` or `+90s`: at once if it was started with any offset
    /// (`+0s` will do), else from the next start on.
    pub fn set_clock(&mut self, offset: &str) {
        // The file is read at every look at the clock, so it is replaced in one go.
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

    /// A folder that the server's user owns, and what removes it.
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
            // Whatever ends the test's process group is not for it.
            .process_group(0)
            .spawn()
            .unwrap();
        let watchdog_waits = watchdog.stdin.take();
        Self {
            folder,
            binaries,
            become_server,
            port: 0,
            postmaster: None,
            clock_is_set: false,
            watchdog,
            watchdog_waits,
        }
    }

    /// A command that runs as the server's user, where that one can be.
    fn command(&self, program: &Path) -> Command {
        let mut command = as_server(&self.become_server, program);
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Runs one of the server's programs, which must succeed.
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.command(&self.binaries.join(program));
        let output = command.args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} failed:\n{said}");
    }

    async fn start_on_a_free_port(&mut self) {
        for _ in 0..20 {
            // Below the ports that Linux hands out by itself: no server that a test starts on port
            // 0, and no outgoing connection, takes it while this one is down.
            self.port = fastrand::u16(20_000..32_000);
            match self.try_start().await {
                Ok(()) => return,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("the server did not start:\n{log}"),
            }
        }
        panic!("no free port was found for the server");
    }

    /// Starts it, and waits until it takes connections; or returns its log.
    async fn try_start(&mut self) -> Result<(), String> {
        let log = fs::File::create(self.folder.join("server.log")).unwrap();
        let mut command = self.command(Path::new("env"));
        if self.clock_is_set {
            // Not of what changes the user.
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
        drop(self.watchdog_waits.take());
        let _ = self.watchdog.wait();
        if let Some(mut postmaster) = self.postmaster.take() {
            let _already_gone = postmaster.kill();
            let _ = postmaster.wait();
        }
    }
}

/// The eighth line of the file tells what the server is ready for; the first is its process.
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
    // What libfaketime leaves behind of a process that was killed.
    for left in [
        format!("faketime_shm_{id}"),
        format!("sem.faketime_sem_{id}"),
    ] {
        let _none = fs::remove_file(Path::new("/dev/shm").join(left));
    }
}

async fn wait_until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let mut waited = Duration::ZERO;
    while !happened().await {
        assert!(waited < PATIENCE, "it did not happen in time: {what}");
        sleep(Duration::from_millis(10)).await;
        waited += Duration::from_millis(10);
    }
}

fn signal(name: &str, ids: &[u32]) {
    if ids.is_empty() {
        return;
    }
    let ids = ids.iter().map(u32::to_string);
    // One of them may be gone by now.
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .args(ids)
        .stderr(Stdio::null())
        .status();
    assert!(sent.is_ok(), "there is no kill");
}

/// The state and the parent of a process.
fn status(id: u32) -> Option<(char, u32)> {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = status.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Not if it has ended and nobody has asked for its exit code yet.
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

/// Debian keeps the server's binaries out of PATH, one directory a version: the newest.
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

/// initdb and postgres refuse to run as root: a prefix that makes them somebody else's, and whose.
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

/// In the temporary directory, or in /tmp if the server's user cannot go there.
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

/// Messages are in English because tests read them.
fn as_server(become_server: &[String], program: &Path) -> Command {
    let mut line = become_server
        .iter()
        .map(AsRef::as_ref)
        .chain([program.as_os_str()]);
    let mut command = Command::new(line.next().unwrap_or(program.as_os_str()));
    command.args(line).env("LC_ALL", "C");
    command
}

/// What the program `faketime` preloads; by itself it takes no clock from a file.
fn faketime_library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap();
    let folders = folders.filter_map(|entry| Some(entry.ok()?.path()));
    folders
        .map(|folder| folder.join("faketime/libfaketime.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is not installed")
}
