//! Programs in Python, with what `tests/requirements.txt` names.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs Python in `folder`, where it may leave things, with these arguments and this input; 240 s at
/// most.
pub fn python(folder: &Path, args: &[&str], input: &str) -> Output {
    let python = std::env::var_os("TEST_PYTHON")
        .expect("TEST_PYTHON is not set; run tests/run, which installs what Python needs");
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

/// All that it said.
pub fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    format!("{}{errors}", String::from_utf8_lossy(&output.stdout))
}
