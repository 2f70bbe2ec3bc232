//! A process that runs cases. The commands and their replies are lines of text.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// The result of one case in one round.
#[derive(Default, Clone, Copy)]
pub struct Done {
    pub pairs: u64,
    pub longest: Duration,
}

impl Done {
    pub fn and(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            longest: self.longest.max(other.longest),
        }
    }
}

/// A program whose processes run cases.
pub struct Program {
    pub name: &'static str,
    path: String,
    arguments: Vec<&'static str>,
}

impl Program {
    /// This program, in the role `name`.
    pub fn this(name: &'static str) -> Self {
        let path = std::env::current_exe().unwrap();
        Self {
            name,
            path: path.to_str().unwrap().to_owned(),
            arguments: vec!["contend", name],
        }
    }

    pub fn other(name: &'static str, path: String) -> Self {
        Self {
            name,
            path,
            arguments: Vec::new(),
        }
    }
}

pub struct Contender {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Contender {
    pub fn start(program: &Program, url: &str) -> Self {
        let mut process = Command::new(&program.path)
            .args(&program.arguments)
            .arg(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output }
    }

    pub fn tell(&mut self, command: &str) {
        let input = self.process.stdin.as_mut().unwrap();
        input.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    pub fn reply(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn done(&mut self) -> Done {
        let line = self.reply();
        let (pairs, micros) = line.split_once(' ').unwrap();
        Done {
            pairs: pairs.parse().unwrap(),
            longest: Duration::from_micros(micros.parse().unwrap()),
        }
    }
}

impl Drop for Contender {
    /// The process ends when its standard input is closed.
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
