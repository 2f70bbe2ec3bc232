//! `docs/grafana.json`: a dashboard for `/metrics`.

use std::collections::{BTreeMap, BTreeSet};

use rocket::serde::json::{Value, serde_json};

use crate::aggregates::{create, rename};
use crate::support::python::{all_output, python};
use crate::support::{Backend, Service};

fn dashboard() -> String {
    std::fs::read_to_string("docs/grafana.json").unwrap()
}

/// Labels that Prometheus adds, or that a histogram has in each bucket.
const FOREIGN_LABELS: [&str; 2] = ["job", "le"];

/// Returns the names in an expression, without its strings and durations.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    let code = expression.split('"').step_by(2);
    code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'))
}

/// Returns the metrics that an expression uses.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    words(expression).filter(|word| word.starts_with("rocket_tx_") || word.starts_with("http_"))
}

/// Returns the labels that an expression selects or groups by, and those of its legend.
fn labels<'a>(expression: &'a str, legend: &'a str) -> BTreeSet<&'a str> {
    let grouped = expression.split("by (").skip(1);
    let grouped = grouped.flat_map(|rest| words(rest.split(')').next().unwrap()));
    let selected = expression.split('{').skip(1).flat_map(|rest| {
        let selectors = rest.split('}').next().unwrap().split(", ");
        selectors.map(|selector| selector.split(['=', '!']).next().unwrap())
    });
    let shown = legend.split("{{").skip(1);
    let shown = shown.map(|rest| rest.split("}}").next().unwrap());
    let all = grouped.chain(selected).chain(shown);
    all.filter(|label| !label.is_empty() && !FOREIGN_LABELS.contains(label))
        .collect()
}

/// Returns the labels of each sample that the service exports, by the name of the sample.
fn exported(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut samples: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let labels = rest.split("=\"").map(|before| {
            let start = before.rfind([',', '{']).map_or(0, |at| at + 1);
            &before[start..]
        });
        samples.entry(name).or_default().extend(labels);
    }
    samples
}

/// Each metric and each label of the dashboard exists, and it shows each metric of the service.
async fn the_dashboard_uses_what_the_service_exports(backend: Backend) {
    let service = Service::start(backend).await;
    service.new_todo("a", "").await;
    service.new_todo("a", "commit").await;
    service.get("/todos").await;
    create(&service.http, "milk").await;
    rename(&service.http, "milk", "a", "").await;
    let response = service.get("/metrics").await;
    let exported = exported(&response.body);

    let dashboard: Value = serde_json::from_str(&dashboard()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut used = BTreeSet::new();
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            let legend = target["legendFormat"].as_str().unwrap();
            assert!(metrics(expression).next().is_some(), "{expression}");
            let mut known: BTreeSet<&str> = BTreeSet::new();
            for metric in metrics(expression) {
                let labels = exported.get(metric);
                let labels = labels.unwrap_or_else(|| panic!("no `{metric}`: {expression}"));
                known.extend(labels);
                used.insert(metric.to_owned());
            }
            for label in labels(expression, legend) {
                assert!(known.contains(label), "no label `{label}`: {expression}");
            }
        }
    }
    let families = response.body.lines();
    let families = families.filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for family in families {
        let is_used = used.iter().any(|name| name.starts_with(family));
        assert!(is_used, "no panel shows `{family}`");
    }
    service.stop().await;
}

/// Grafana's own types for a dashboard know each of its fields. Reading drops unknown fields, so a
/// field is unknown if it is missing when the dashboard is written again.
#[test]
fn grafana_knows_each_field_of_the_dashboard() {
    let program = r"
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

def unknown(ours, known, path):
    if isinstance(ours, dict) and isinstance(known, dict):
        for key, value in ours.items():
            yield from unknown(value, known.get(key), f'{path}.{key}')
    elif isinstance(ours, list) and isinstance(known, list) and len(ours) == len(known):
        for place, (one, other) in enumerate(zip(ours, known)):
            yield from unknown(one, other, f'{path}[{place}]')
    elif ours != known:
        yield path

register_default_plugins()
ours = json.load(sys.stdin)
known = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
print(*unknown(ours, known, ''))
";
    let folder = tempfile::tempdir().unwrap();
    let unknown = |text: &str| {
        let output = python(folder.path(), &["-c", program], text);
        assert!(output.status.success(), "{}", all_output(&output));
        all_output(&output).trim().to_owned()
    };
    let dashboard = dashboard();
    assert_eq!(unknown(&dashboard), "");
    let wrong = dashboard.replacen("\"gridPos\"", "\"gridPosition\"", 1);
    assert_eq!(unknown(&wrong), ".panels[0].gridPosition");
}

/// No panel covers another, and no two have the same id.
#[test]
fn panels_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&dashboard()).unwrap();
    let mut cells = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let position = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (x, y) = (position("x"), position("y"));
        assert!(x + position("w") <= 24, "{panel}");
        for cell in (x..x + position("w")).flat_map(|x| (y..y + position("h")).map(move |y| (x, y)))
        {
            assert!(cells.insert(cell), "{panel}");
        }
    }
}

on_each_backend!(the_dashboard_uses_what_the_service_exports);
