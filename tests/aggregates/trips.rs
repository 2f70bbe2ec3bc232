//! Round trips of commands on aggregates, as the proxies of both databases count them.

use std::sync::Arc;

use rocket::serde::json::json;

use crate::support::{Backend, Databases, HttpResponse, In, Proxy, Service};

/// The service, with a proxy for each database.
struct Counted {
    service: Service,
    proxies: [Proxy; 2],
}

impl Counted {
    async fn start() -> Self {
        let mut databases = Databases::new(Backend::Postgres).await;
        let proxies = [
            databases.by_proxy(In::Main).await,
            databases.by_proxy(In::Audit).await,
        ];
        // One database writes after the other, as without prepared transactions.
        let service = Service::on(Arc::new(databases), &[("ROCKET_ATOMIC_COMMIT", "off")]).await;
        Self { service, proxies }
    }

    fn now(&self) -> [u64; 2] {
        [0, 1].map(|proxy| self.proxies[proxy].round_trips())
    }

    async fn post(&self, path: &str, body: String) -> [u64; 2] {
        let before = self.now();
        let request = self
            .service
            .http
            .request(&format!("POST {path}"))
            .header("Content-Type", "application/json")
            .body(body);
        let response = HttpResponse::of(request).await;
        assert!(response.status < 300, "{path}: {response:?}");
        let after = self.now();
        [0, 1].map(|proxy| after[proxy] - before[proxy])
    }

    async fn create(&self, ids: &[String]) {
        for id in ids {
            let new = json!({"id": id, "user_id": "u", "task": "t"});
            self.post("/aggregates/todos", new.to_string()).await;
        }
    }
}

fn ids(kind: &str, number: usize) -> Vec<String> {
    (0..number).map(|n| format!("{kind}-{n:03}")).collect()
}

mod postgres {
    use super::*;

    /// The fewest of several attempts: sweeps and other tasks of the service use the databases too.
    #[rocket::async_test]
    async fn a_rename_takes_these_round_trips() {
        let counted = Counted::start().await;
        let all = ids("a", 8);
        counted.create(&all).await;
        let mut fewest = [u64::MAX; 2];
        for id in &all {
            let path = format!("/aggregates/todos/{id}/rename");
            let trips = counted.post(&path, r#"{"task":"new"}"#.into()).await;
            fewest = [0, 1].map(|proxy| fewest[proxy].min(trips[proxy]));
        }
        assert_eq!(fewest, [9, 4]);
        counted.service.stop().await;
    }

    /// Each session prepares a statement when it first uses it, so several attempts are needed here
    /// too.
    #[rocket::async_test]
    async fn a_batch_takes_no_more_round_trips_than_its_leases() {
        let counted = Counted::start().await;
        let mut trips = Vec::new();
        for number in [1, 20] {
            let mut fewest = [u64::MAX; 2];
            for attempt in 0..12 {
                let all = ids(&format!("{number}-{attempt}"), number);
                counted.create(&all).await;
                let body = json!({"ids": all}).to_string();
                let trips = counted.post("/aggregates/todos/complete", body).await;
                fewest = [0, 1].map(|proxy| fewest[proxy].min(trips[proxy]));
            }
            trips.push(fewest);
        }
        // Each lease is taken by a statement of its own.
        assert_eq!(trips[1][0] - trips[0][0], 19);
        assert_eq!(trips[1][1], trips[0][1]);
        counted.service.stop().await;
    }
}
