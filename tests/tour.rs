//! The tour in README.md, command by command: it prints what it says.

use std::process::Command;

use crate::support::{Backend, Service};

/// A command, and what it prints; `…` stands for any text.
struct Step {
    command: String,
    prints: Vec<String>,
}

/// The blocks marked `console`, in order.
fn steps() -> Vec<Step> {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step {
                    command: command.to_owned(),
                    prints: Vec::new(),
                }),
                None => steps.last_mut().unwrap().prints.push(line.to_owned()),
            },
        }
    }
    steps
}

/// Runs all commands in one shell, as a reader would; returns what each has printed.
fn run(steps: &[Step], base: &str) -> Vec<Vec<String>> {
    const MARK: &str = "---- end of step";

    let mut script = String::new();
    for step in steps {
        let command = step.command.replace("http://127.0.0.1:8000", base);
        script += &format!("{command}\necho; echo '{MARK}'\n");
    }
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let output = output
        .replace('\r', "")
        .replace(base, "http://127.0.0.1:8000");
    let mut printed: Vec<Vec<String>> = output
        .split(MARK)
        .map(|part| {
            part.lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .collect();
    printed.pop();
    printed
}

fn matches(expected: &str, line: &str) -> bool {
    let parts: Vec<&str> = expected.split('…').collect();
    let [first, between @ .., last] = &parts[..] else {
        return expected == line;
    };
    let rest = line
        .strip_prefix(first)
        .and_then(|rest| rest.strip_suffix(last));
    let Some(mut rest) = rest else {
        return false;
    };
    between.iter().all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

async fn the_tour_prints_what_the_readme_says(backend: Backend) {
    let steps = steps();
    assert!(steps.len() > 15, "the tour is not where it was");
    let service = Service::start(backend).await;
    let base = service.http.base.clone();
    let (steps, printed) = rocket::tokio::task::spawn_blocking(move || {
        let printed = run(&steps, &base);
        (steps, printed)
    })
    .await
    .unwrap();
    assert_eq!(
        printed.len(),
        steps.len(),
        "every command has come to its end"
    );
    for (step, printed) in steps.iter().zip(printed) {
        let as_told = step.prints.len() == printed.len()
            && step
                .prints
                .iter()
                .zip(&printed)
                .all(|(expected, line)| matches(expected, line));
        assert!(
            as_told,
            "$ {}\nshould print\n{}\nbut prints\n{}",
            step.command,
            step.prints.join("\n"),
            printed.join("\n")
        );
    }
    service.stop().await;
}

#[test]
fn an_ellipsis_stands_for_any_text_and_nothing_else_does() {
    assert!(matches("a…b", "a and b"));
    assert!(matches("a…", "a and b"));
    assert!(matches("ab", "ab"));
    assert!(!matches("ab", "abc"));
    assert!(!matches("a…b", "a and c"));
    assert!(!matches("a…b…c", "a c b"));
}

on_each_backend!(the_tour_prints_what_the_readme_says);
