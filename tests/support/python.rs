//! Programs in Python, with what `tests/requirements.txt` names.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs Python with these arguments and this input, 150 s at most.
pub fn python(args: &[&str], input: &str) -> Output {
    let python = std::env::var_os("TEST_PYTHON")
        .expect("TEST_PYTHON is not set; run tests/run, which installs what Python needs");
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "150"])
        .arg(python)
        .args(args)
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

/// All that it said, in the order of importance.
pub fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    format!("{}{errors}", String::from_utf8_lossy(&output.stdout))
}
