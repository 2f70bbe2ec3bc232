//! The two databases on servers that belong to the test, each behind a proxy, and processes of the
//! service on them.

use std::time::Duration;

use rocket::serde::json::Value;
use rocket::tokio::task::JoinHandle;

use super::*;
use crate::support::{Break, HttpResponse, Proxy, Service, eventually, eventually_within};

/// Recovery begins a pass at least every 45 s, and waits for a locked file.
const RECOVERY: Duration = Duration::from_secs(180);

/// Recovery waits for `settle_timeout` before it finishes what another process has prepared.
pub const SHORT: (&str, &str) = ("ROCKET_SETTLE_TIMEOUT", "\"1s\"");

/// A process that is stopped has still time for its settlement when it goes on. Its recovery does
/// not finish what others have prepared.
pub const PATIENT: (&str, &str) = ("ROCKET_SETTLE_TIMEOUT", "\"120s\"");

pub const REQUIRED: (&str, &str) = ("ROCKET_ATOMIC_COMMIT", "required");

/// The beginning of the statement with which a request decides to commit.
pub const DECIDES: &str = "WITH decided AS (INSERT INTO public.rocket_tx_decisions (";

/// The beginning of the statement with which recovery reads a decision or decides to abort.
pub const ASKS: &str = "INSERT INTO public.rocket_tx_decisions AS";

/// The beginning of the statement that deletes decisions.
pub const FORGETS: &str = "DELETE FROM public.rocket_tx_decisions";

/// A server with one database, and the proxy through which the service reaches it.
pub struct Server {
    pub cluster: Cluster,
    pub proxy: Proxy,
}

/// Two databases, of which those that are not a file have a server of their own.
pub struct Servers {
    pub databases: Arc<Databases>,
    main: Option<Server>,
    audit: Option<Server>,
}

impl Servers {
    pub async fn of(pair: Pair) -> Self {
        let on_server = async |is_on_server, name| match is_on_server {
            true => {
                let cluster = Cluster::start().await;
                let url = cluster.create_database(name).await;
                Some((cluster, url))
            }
            false => None,
        };
        let main = on_server(pair != Pair::MainOnFile, "main").await;
        let audit = on_server(pair != Pair::AuditOnFile, "audit").await;
        let url = |server: &Option<(Cluster, String)>| Some(server.as_ref()?.1.clone());
        let mut databases = Databases::at(url(&main), url(&audit));
        let mut links = Vec::new();
        for (database, server) in [(In::Main, main), (In::Audit, audit)] {
            links.push(match server {
                Some((cluster, _)) => Some(Server {
                    cluster,
                    proxy: databases.by_proxy(database).await,
                }),
                None => None,
            });
        }
        Self {
            databases: Arc::new(databases),
            audit: links.pop().flatten(),
            main: links.pop().flatten(),
        }
    }

    /// Returns the server of a database that is not a file.
    pub fn at(&self, database: In) -> &Server {
        let server = match database {
            In::Main => &self.main,
            In::Audit => &self.audit,
        };
        server.as_ref().expect("the database is on a server")
    }

    pub fn at_mut(&mut self, database: In) -> &mut Server {
        let server = match database {
            In::Main => &mut self.main,
            In::Audit => &mut self.audit,
        };
        server.as_mut().expect("the database is on a server")
    }

    /// Starts a process of the service, which must commit atomically.
    pub async fn service(&self, settle_timeout: (&str, &str)) -> Service {
        Service::on(Arc::clone(&self.databases), &[REQUIRED, settle_timeout]).await
    }

    /// Sets a trap in front of a database, and waits until the request has sprung it.
    pub async fn post_into(
        &self,
        (database, statement, how): (In, &str, Break),
        service: &Service,
        title: &str,
    ) -> JoinHandle<HttpResponse> {
        let proxy = &self.at(database).proxy;
        proxy.set(statement, how);
        let response = post(service, title);
        eventually("the statement was sent", async || proxy.has_sprung()).await;
        response
    }

    /// Waits until nothing is prepared in `database`.
    pub async fn nothing_is_prepared(&self, database: In) {
        eventually_within(RECOVERY, "nothing is prepared", async || {
            prepared(&self.databases, database).await.is_empty()
        })
        .await;
    }

    /// Waits until each service works: nothing holds a lock, and no pool has lost a connection.
    pub async fn each_works(&self, services: &[&Service]) {
        for service in services {
            eventually("a request succeeds", async || {
                post(service, "works").await.unwrap().summary() == (201, Some("committed"))
            })
            .await;
        }
    }
}

/// Sends a request that creates a todo. Its row in `audit` names the todo by its title.
pub fn post(service: &Service, title: &str) -> JoinHandle<HttpResponse> {
    rocket::tokio::spawn(HttpResponse::of(service.titled(title)))
}

/// Returns the titles of the todos that are stored in each database.
pub async fn titles(databases: &Databases) -> [Vec<String>; 2] {
    let main = "SELECT title FROM todos ORDER BY title";
    // `http://<title>/todos/<id>`
    let audit = databases
        .texts(In::Audit, "SELECT subject FROM audit ORDER BY subject")
        .await;
    let title = |subject: &String| subject.split('/').nth(2).unwrap().to_owned();
    [
        databases.texts(In::Main, main).await,
        audit.iter().map(title).collect(),
    ]
}

/// Returns the ids of the decisions that are stored.
pub async fn decisions(databases: &Databases, decider: In) -> Vec<String> {
    let sql = "SELECT id FROM rocket_tx_decisions";
    databases.texts(decider, sql).await
}

/// Makes each decision two minutes older, so that recovery considers it to be left over.
pub async fn make_decisions_old(databases: &Databases, decider: In) {
    let sql = match databases.backend(decider) {
        Backend::Sqlite => "UPDATE rocket_tx_decisions SET decided_at = decided_at - 120",
        Backend::Postgres => {
            "UPDATE rocket_tx_decisions SET decided_at = decided_at - interval '2 minutes'"
        }
    };
    databases.execute(decider, sql).await;
}

/// Returns what `/registry` lists as in doubt.
pub async fn in_doubt(service: &Service) -> Vec<Value> {
    let registry: Value = service.get("/registry").await.json();
    registry["in_doubt"].as_array().unwrap().clone()
}

/// Waits until `/registry` lists the transaction `name` of `participant` as in doubt.
pub async fn lists(service: &Service, name: &str, participant: In, decider: In) {
    let is_listed = |one: &Value| {
        one["name"] == name
            && one["database"] == super::name(participant)
            && one["decider"] == super::name(decider)
    };
    eventually_within(
        RECOVERY,
        "the transaction is listed as in doubt",
        async || in_doubt(service).await.iter().any(is_listed),
    )
    .await;
}
