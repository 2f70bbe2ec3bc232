//! A disk that fails, or is slow, for a service in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use crate::support::{Databases, Service};

/// What the process's disk does, by the orders in a file; see `disk.c`.
pub struct Disk {
    orders: PathBuf,
    library: &'static str,
}

impl Disk {
    pub fn of(databases: &Databases) -> Self {
        Self {
            orders: databases.folder().join("orders"),
            library: library(),
        }
    }

    /// One order a line: `fdatasync -wal eio`.
    pub fn order(&self, orders: &str) {
        // In one step: a half-written order is another one.
        let new = self.orders.with_extension("new");
        std::fs::write(&new, format!("{orders}\n")).unwrap();
        std::fs::rename(new, &self.orders).unwrap();
    }

    pub fn mend(&self) {
        self.order("");
    }

    /// Starts the service on this disk, with variables of its environment.
    pub async fn service(&self, databases: &Arc<Databases>, variables: &[(&str, &str)]) -> Service {
        let mut all = vec![
            ("LD_PRELOAD", self.library),
            ("DISK_ORDERS", self.orders.to_str().unwrap()),
        ];
        all.extend_from_slice(variables);
        Service::on(Arc::clone(databases), &all).await
    }

    /// The disk of this process, if it has one; if not, the test `name` is run in a process that has.
    pub fn of_this_process(folder: &Path, name: &str) -> Option<Self> {
        if let Some(orders) = std::env::var_os("DISK_ORDERS") {
            let orders = orders.into();
            return Some(Self {
                orders,
                library: "",
            });
        }
        let run = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env("LD_PRELOAD", library())
            .env("DISK_ORDERS", folder.join("orders"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(
            said.contains("1 passed"),
            "in the other process: {said}{errors}"
        );
        None
    }
}

/// Compiled once a run.
fn library() -> &'static str {
    static LIBRARY: OnceLock<String> = OnceLock::new();

    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durability/disk.c");
        let number = std::process::id();
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{number}.so"));
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status()
            .expect("there is no C compiler (cc)");
        assert!(compiled.success());
        library.to_str().unwrap().to_owned()
    })
}
