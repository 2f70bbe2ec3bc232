//! The tours in docs/service.md: each command prints the output on the page.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::{Backend, Service};

/// The base URLs of the processes on the page.
const PAGE_BASES: [&str; 2] = ["http://127.0.0.1:8000", "http://127.0.0.1:8001"];

/// A command and its expected output, in which `…` stands for any text.
struct Step {
    command: String,
    prints: Vec<String>,
}

/// Returns the steps in the code blocks that begin with this mark, in order.
fn steps(mark: &str) -> Vec<Step> {
    let page = std::fs::read_to_string("docs/service.md").unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```" => inside = false,
            _ if line == mark => inside = true,
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

/// Runs all commands in one shell, as a reader would. Returns the output of each.
fn run(steps: &[Step], bases: &[String], folder: &Path) -> Vec<Vec<String>> {
    const MARK: &str = "---- end of step";

    let mut script = String::new();
    for step in steps {
        let mut command = step.command.clone();
        for (page_base, base) in PAGE_BASES.iter().zip(bases) {
            command = command.replace(page_base, base);
        }
        script += &format!("{command}\necho; echo '{MARK}'\n");
    }
    let mut bash = Command::new("bash");
    let output = bash.args(["-c", &script]).current_dir(folder).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut output = output.replace('\r', "");
    for (page_base, base) in PAGE_BASES.iter().zip(bases) {
        output = output.replace(base, page_base);
    }
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

async fn the_tour_prints_the_output_on_the_page(backend: Backend) {
    follow("```console", vec![Service::start(backend).await]).await;
}

async fn the_tour_with_two_processes_prints_the_output_on_the_page(backend: Backend) {
    let one = Service::start(backend).await;
    let two = Service::on(Arc::clone(&one.databases), &[]).await;
    follow("```console two", vec![one, two]).await;
}

async fn follow(mark: &str, services: Vec<Service>) {
    let steps = steps(mark);
    assert!(
        steps.len() > 10,
        "docs/service.md has too few commands marked {mark}"
    );
    let bases: Vec<String> = services
        .iter()
        .map(|service| service.http.base.clone())
        .collect();
    let folder = services[0].databases.folder().to_owned();
    let (steps, printed) = rocket::tokio::task::spawn_blocking(move || {
        let printed = run(&steps, &bases, &folder);
        (steps, printed)
    })
    .await
    .unwrap();
    assert_eq!(printed.len(), steps.len(), "every command has ended");
    for (step, printed) in steps.iter().zip(printed) {
        let matches_page = step.prints.len() == printed.len()
            && step
                .prints
                .iter()
                .zip(&printed)
                .all(|(expected, line)| matches(expected, line));
        assert!(
            matches_page,
            "$ {}\nshould print\n{}\nbut prints\n{}",
            step.command,
            step.prints.join("\n"),
            printed.join("\n")
        );
    }
    for service in services {
        service.stop().await;
    }
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

on_each_backend!(
    the_tour_prints_the_output_on_the_page,
    the_tour_with_two_processes_prints_the_output_on_the_page,
);
