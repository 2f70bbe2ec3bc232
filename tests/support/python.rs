//! Runs Python programs, with the packages of `tests/requirements.txt`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs Python with these arguments and this input, for 240 s at most. Its working directory is
/// `folder`.
pub fn python(folder: &Path, args: &[&str], input: &str) -> Output {
    let python = std::env::var_os("TEST_PYTHON")
        .expect("TEST_PYTHON is not set; run tests/run, which installs the Python packages");
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "240"])
        .arg(python)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Returns the standard output followed by the standard error.
pub fn all_output(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    format!("{}{errors}", String::from_utf8_lossy(&output.stdout))
}
