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

    /// The most round trips of a command on one aggregate to `main` and to `audit`.
    const ONE: [u64; 2] = [9, 4];

    /// Other tasks of the service use the databases too. So the best of several attempts counts.
    async fn best_of<const N: usize>(attempts: [impl AsyncFnOnce() -> [u64; 2]; N]) -> [u64; 2] {
        let mut best = [u64::MAX; 2];
        for attempt in attempts {
            let trips = attempt().await;
            best = [0, 1].map(|proxy| best[proxy].min(trips[proxy]));
        }
        best
    }

    #[rocket::async_test]
    async fn a_rename_takes_these_round_trips() {
        let counted = Counted::start().await;
        let all = ids("a", 8);
        counted.create(&all).await;
        let rename = |id: &String| {
            let path = format!("/aggregates/todos/{id}/rename");
            let counted = &counted;
            async move || counted.post(&path, r#"{"task":"new"}"#.into()).await
        };
        let best = best_of([0, 1, 2, 3, 4, 5, 6, 7].map(|n| rename(&all[n]))).await;
        assert!(best[0] <= ONE[0] && best[1] <= ONE[1], "{best:?}");
        counted.service.stop().await;
    }

    #[rocket::async_test]
    async fn the_round_trips_of_a_batch_do_not_grow_with_its_size() {
        /// The statements of a batch, which the session may have to prepare first.
        const PREPARED: u64 = 5;

        let counted = Counted::start().await;
        for number in [20, 100] {
            let complete = |attempt: usize| {
                let all = ids(&format!("{number}-{attempt}"), number);
                let counted = &counted;
                async move || {
                    counted.create(&all).await;
                    let body = json!({"ids": all}).to_string();
                    counted.post("/aggregates/todos/complete", body).await
                }
            };
            let best = best_of(std::array::from_fn::<_, 4, _>(complete)).await;
            assert!(
                best[0] <= ONE[0] + PREPARED && best[1] <= ONE[1] + PREPARED,
                "{number}: {best:?}"
            );
        }
        counted.service.stop().await;
    }
}
