//! Requests that are sent until they are answered, while their process is killed at random.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rocket::futures::future::{join, join_all};
use rocket::tokio;
use rocket::tokio::sync::RwLock;

use crate::support::{Backend, Databases, In, Service};

/// Reads a number from an environment variable.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The status, the headers that belong to the request, and the body.
type Answer = (u16, Option<String>, String);

/// The process that serves now.
type Current = RwLock<Option<Service>>;

/// Sends a request once. Returns `None` if the client does not know what happened, or if the
/// response says that nothing was changed and that the request may be sent again. The flag is `true`
/// if the response was a stored one.
async fn send_once(current: &Current, key: &str) -> Option<(Answer, bool)> {
    let request = {
        let service = current.read().await;
        let request = service.as_ref()?.http.request("POST /todos");
        request
            .header("Idempotency-Key", key)
            .header("Content-Type", "application/json")
            .timeout(Duration::from_secs(10))
            .body(format!(r#"{{"title":"{key}"}}"#))
    };
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    let location = response.headers().get("location");
    let location = location.map(|it| it.to_str().unwrap().to_owned());
    let replayed = response.headers().contains_key("idempotency-replayed");
    let retry = response.headers().contains_key("retry-after");
    let body = response.text().await.ok()?;
    if status == 503 || (status == 409 && retry) {
        return None;
    }
    Some(((status, location, body), replayed))
}

async fn every_key_has_one_effect_and_one_response(backend: Backend) {
    let seed = number("IDEMPOTENCY_SEED", 20_261_126);
    let requests = number("IDEMPOTENCY_REQUESTS", 150);
    println!("seed {seed}, {requests} requests");
    let databases = Arc::new(Databases::new(backend).await);
    let current = Current::default();
    let is_done = AtomicBool::new(false);
    // All of this runs in one task, so a panic of one part ends the others.
    let killer = async {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut kills = 0_u32;
        while !is_done.load(Ordering::Relaxed) {
            let service = Service::on(Arc::clone(&databases), &[]).await;
            *current.write().await = Some(service);
            tokio::time::sleep(Duration::from_millis(random.u64(30..600))).await;
            if let Some(mut service) = current.write().await.take() {
                service.signal("KILL");
                service.ended().await;
                kills += 1;
            }
        }
        kills
    };
    let client = async |client: u64| {
        let mut random = fastrand::Rng::with_seed(seed ^ (client + 1));
        let mut answers = BTreeMap::<String, Vec<Answer>>::new();
        let mut lost = 0;
        for request in 0..requests.div_ceil(8) {
            let key = format!("{client}-{request}");
            // After the first answer some are repeated, although the client knows the answer.
            let wanted = 1 + usize::from(random.bool());
            let answers = answers.entry(key.clone()).or_default();
            while answers.len() < wanted {
                match send_once(&current, &key).await {
                    Some((answer, replayed)) => {
                        // The first response did not arrive, and its request was done.
                        lost += u64::from(replayed && answers.is_empty());
                        answers.push(answer);
                    }
                    None => tokio::time::sleep(Duration::from_millis(random.u64(1..40))).await,
                }
            }
        }
        (answers, lost)
    };
    let clients = async {
        let all = join_all((0..8).map(&client)).await;
        is_done.store(true, Ordering::Relaxed);
        all
    };
    let (all, kills) = join(clients, killer).await;
    let mut answers = BTreeMap::new();
    let mut lost = 0;
    for (its_answers, its_lost) in all {
        answers.extend(its_answers);
        lost += its_lost;
    }
    println!(
        "{} keys, {kills} kills, {lost} lost responses",
        answers.len()
    );
    for (key, answers) in &answers {
        assert!(
            answers.iter().all(|it| *it == answers[0]),
            "{key}: {answers:?}"
        );
        assert_eq!(answers[0].0, 201, "{key}: {answers:?}");
    }
    let mut stored = databases.texts(In::Main, "SELECT title FROM todos").await;
    stored.sort();
    let keys: Vec<String> = answers.into_keys().collect();
    assert_eq!(stored, keys, "seed {seed}");
    assert!(kills > 0);
    // A long run without a lost response would prove nothing.
    assert!(lost > 0 || requests < 1_000, "seed {seed}");
}

on_each_backend!(every_key_has_one_effect_and_one_response);
