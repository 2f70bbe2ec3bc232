//! `/openapi.json`: the service has exactly the operations in its contract, and its responses
//! conform to the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rocket::Config;
use rocket::http::Status;
use rocket::serde::json::Value;
use rocket::tokio::task::spawn_blocking;
use rocket_tx::testing::{self, App};

use crate::support::python::{all_output, python};
use crate::support::{Backend, Databases, Service};

/// A service in this process, with its contract.
struct Documented {
    app: App,
    contract: Value,
}

impl Documented {
    async fn new() -> Self {
        let figment = Config::figment()
            .merge(("log_level", "off"))
            .select("release");
        let app = testing::launch(rocket_tx_service::service(figment)).await;
        let contract = app.get("/openapi.json").dispatch().await;
        Self {
            contract: contract.into_json().await.unwrap(),
            app,
        }
    }

    /// Returns every path and method of the service. Methods are in lower case, as in the contract.
    fn routes(&self) -> BTreeSet<(String, String)> {
        let routes = self.app.rocket().routes();
        let own = routes.filter(|route| route.name.as_deref() != Some("allowed methods"));
        own.map(|route| {
            let path = route.uri.path().replace('<', "{").replace("..", "");
            let method = route.method.as_str().to_lowercase();
            (path.replace('>', "}"), method)
        })
        .collect()
    }

    /// Returns every operation of the contract, by path and method.
    fn operations(&self) -> BTreeMap<(String, String), &Value> {
        let paths = self.contract["paths"].as_object().unwrap().iter();
        let methods = |(path, item): (&String, &'_ Value)| -> Vec<(String, String)> {
            let methods = item.as_object().unwrap().keys();
            methods.map(|it| (path.clone(), it.clone())).collect()
        };
        paths
            .flat_map(methods)
            .map(|(path, method)| {
                let operation = &self.contract["paths"][&path][&method];
                ((path, method), operation)
            })
            .collect()
    }

    /// Returns the value that a `$ref` points to. Any other value is returned unchanged.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(pointer) => {
                let found = self.contract.pointer(pointer.trim_start_matches('#'));
                found.unwrap_or_else(|| panic!("{pointer} does not exist"))
            }
            None => value,
        }
    }
}

fn references(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(map) if map.contains_key("$ref") => vec![value],
        Value::Object(map) => map.values().flat_map(references).collect(),
        Value::Array(list) => list.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[rocket::async_test]
async fn every_route_is_in_the_contract_and_nothing_else() {
    let documented = Documented::new().await;
    let version = documented.contract["openapi"].as_str().unwrap();
    assert!(version.starts_with("3.1."), "{version}");
    let operations: BTreeSet<_> = documented.operations().into_keys().collect();
    let routes = documented.routes();
    let missing: Vec<_> = routes.difference(&operations).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    let invented: Vec<_> = operations.difference(&routes).collect();
    assert!(invented.is_empty(), "not a route: {invented:?}");
}

#[rocket::async_test]
async fn every_operation_documents_success_and_failure() {
    let documented = Documented::new().await;
    let mut names = BTreeSet::new();
    for (operation, contract) in documented.operations() {
        let name = contract["operationId"].as_str().unwrap();
        assert!(names.insert(name), "{name} twice");
        let summary = contract["summary"].as_str().unwrap_or_default();
        assert!(!summary.is_empty(), "{operation:?} is not described");
        let responses = contract["responses"].as_object().unwrap();
        let mut statuses = responses.keys();
        let succeeds = statuses.any(|status| status.starts_with(['2', '3']));
        assert!(succeeds, "{operation:?}");
        for status in ["403", "422", "500"] {
            assert!(responses.contains_key(status), "{operation:?}: {status}");
        }
        for (status, response) in responses {
            let response = documented.resolved(response);
            let id = &response["headers"]["X-Request-Id"];
            assert_eq!(id["required"], true, "{operation:?}: {status}");
            assert!(response["description"] != "", "{operation:?}: {status}");
            if status.starts_with(['4', '5']) {
                let body = &response["content"]["application/problem+json"]["schema"];
                let problem = documented.resolved(body);
                let title = &problem["properties"]["title"]["type"];
                assert_eq!(title, "string", "{operation:?}: {status}");
            }
            if status == "503" {
                let retry = &response["headers"]["Retry-After"];
                assert_eq!(retry["required"], true, "{operation:?}");
            }
        }
    }
    for reference in references(&documented.contract) {
        assert!(documented.resolved(reference).is_object(), "{reference}");
    }
}

#[rocket::async_test]
async fn each_operation_that_changes_something_documents_its_key() {
    let documented = Documented::new().await;
    let mut with_key = 0;
    for ((path, method), contract) in documented.operations() {
        let part = path.split('/').nth(1).unwrap();
        let accepts = method != "get" && ["todos", "aggregates"].contains(&part);
        let no_parameters = Vec::new();
        let parameters = contract["parameters"].as_array().unwrap_or(&no_parameters);
        let has_key = parameters.iter().any(|it| it["name"] == "Idempotency-Key");
        assert_eq!(has_key, accepts, "{method} {path}");
        if accepts {
            with_key += 1;
            for status in ["400", "409", "422"] {
                assert!(
                    contract["responses"][status].is_object(),
                    "{method} {path}: {status}"
                );
            }
            let responses = contract["responses"].as_object().unwrap().iter();
            for (status, response) in responses.filter(|(status, _)| status.starts_with('2')) {
                let header = &response["headers"]["Idempotency-Replayed"];
                assert!(header.is_object(), "{method} {path}: {status}");
            }
        }
    }
    assert_eq!(with_key, 9);
}

#[rocket::async_test]
async fn operations_for_operators_are_marked_in_the_contract() {
    let documented = Documented::new().await;
    for ((path, method), contract) in documented.operations() {
        let path = path.replace("{id}", "1").replace("{token}", "x");
        let method = method.parse().unwrap();
        let request = documented.app.req(method, path.clone());
        let elsewhere = "203.0.113.7:4000".parse().unwrap();
        let response = request.remote(elsewhere).dispatch().await;
        let refused = response.status() == Status::Forbidden;
        assert_eq!(refused, contract["security"].is_array(), "{method} {path}");
    }
}

/// Tests every endpoint with requests that conform to the contract and requests that violate it.
/// They are generated by a tool that reads only the contract.
async fn responses_conform_to_the_contract(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let service = Service::on(databases, &[("ROCKET_FAULTS", "false")]).await;
    // Without keys: a generated key may belong to an earlier request with other content, and then a
    // valid request is refused. The tests of `idempotency` send keys.
    let mut contract: Value = service.get("/openapi.json").await.json();
    for operations in contract["paths"].as_object_mut().unwrap().values_mut() {
        for operation in operations.as_object_mut().unwrap().values_mut() {
            let parameters = operation.get_mut("parameters");
            if let Some(parameters) = parameters.and_then(Value::as_array_mut) {
                parameters.retain(|it| it["name"] != "Idempotency-Key");
            }
        }
    }
    let file = service.databases.folder().join("contract.json");
    std::fs::write(&file, contract.to_string()).unwrap();
    let (contract, base) = (file.display().to_string(), service.http.base.clone());
    let databases = Arc::clone(&service.databases);
    let output = spawn_blocking(move || {
        let settings = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemathesis.toml");
        let command = ["-m", "schemathesis.cli", "--config-file", settings, "run"];
        let run = [
            &command[..],
            &[&contract, "--url", &base, "--checks", "all"],
        ]
        .concat();
        python(databases.folder(), &run, "")
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    println!("{}", all_output(&output));

    // No request has left a transaction or a lease behind.
    let registry: Value = service.get("/registry").await.json();
    assert_eq!(registry["outstanding"], Value::Array(Vec::new()));
    let settled = registry["settled"]["committed"].as_u64();
    assert!(settled > Some(100), "most requests were refused");
    let leases: Value = service.get("/leases").await.json();
    assert_eq!(leases["leases"], Value::Array(Vec::new()));
    service.stop().await;
}

on_each_backend!(responses_conform_to_the_contract);
