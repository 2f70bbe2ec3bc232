//! Simulates a disk that fails or is slow, for a service in a separate process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use crate::support::{Databases, Service};

/// The simulated disk of a process. A file contains its orders; see `disk.c`.
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

    /// Replaces the orders. Each line is one order, such as `fdatasync -wal eio`.
    pub fn order(&self, orders: &str) {
        // Replaced atomically, because half of an order could be read as a different order.
        let new = self.orders.with_extension("new");
        std::fs::write(&new, format!("{orders}\n")).unwrap();
        std::fs::rename(new, &self.orders).unwrap();
    }

    /// Removes all orders, so that the disk works.
    pub fn mend(&self) {
        self.order("");
    }

    /// Starts the service on this disk, with environment variables.
    pub async fn service(&self, databases: &Arc<Databases>, variables: &[(&str, &str)]) -> Service {
        let mut all = vec![
            ("LD_PRELOAD", self.library),
            ("DISK_ORDERS", self.orders.to_str().unwrap()),
        ];
        all.extend_from_slice(variables);
        Service::on(Arc::clone(databases), &all).await
    }

    /// Returns the simulated disk of this process, if it has one. Otherwise runs the test `name` in
    /// a new process with a simulated disk, asserts that it passes, and returns `None`.
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
        let output = String::from_utf8_lossy(&run.stdout);
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(
            output.contains("1 passed"),
            "in the other process: {output}{errors}"
        );
        None
    }
}

/// Returns the path of the library, which is compiled once per run.
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
            .expect("the C compiler `cc` was not found");
        assert!(compiled.success());
        library.to_str().unwrap().to_owned()
    })
}
