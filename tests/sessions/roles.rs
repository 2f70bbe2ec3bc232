//! A login that is set to act as another role: `ALTER ROLE login SET role = application`.

use std::sync::Arc;

use rocket::tokio::sync::Notify;

use super::*;
use crate::support::{Databases, In, eventually};

/// Leaves its transaction with a task, which keeps it after the response.
#[post("/keep/<text>")]
async fn keep(
    text: &str,
    mut tx: Tx<Main>,
    go_on: &rocket::State<Arc<Notify>>,
) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    let go_on = Arc::clone(go_on);
    rocket::tokio::spawn(async move {
        go_on.notified().await;
        drop(tx);
    });
    Ok(Status::Created)
}

/// A role that may use the tables, and a login role that acts as it. Neither is a superuser, and
/// neither may read the statistics of other roles' sessions.
struct Roles {
    admin: PgConnection,
    application: String,
    login: String,
}

impl Roles {
    async fn made(databases: &Databases) -> Self {
        let mut admin = databases.postgres(In::Main).await;
        let name = sqlx::query_scalar("SELECT current_database()::text");
        let name: String = name.fetch_one(&mut admin).await.unwrap();
        let (application, login) = (format!("{name}_application"), format!("{name}_login"));
        let mut roles = Self {
            admin,
            application,
            login,
        };
        let Self {
            application, login, ..
        } = &roles;
        let sql = format!(
            "CREATE ROLE {application}; CREATE ROLE {login} LOGIN IN ROLE {application}; \
             ALTER ROLE {login} SET role = {application}; \
             GRANT ALL ON notes, pairs TO {application}"
        );
        roles.run(sql).await;
        roles
    }

    async fn run(&mut self, sql: String) {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        self.admin.execute(sql).await.unwrap();
    }

    async fn drop(mut self) {
        let Self {
            application, login, ..
        } = &self;
        let sql = format!("DROP OWNED BY {application}; DROP ROLE {login}, {application}");
        self.run(sql).await;
    }
}

#[rocket::async_test]
async fn a_login_that_acts_as_another_role_does_so_in_each_request() {
    let mut databases = Databases::with_tables(Backend::Postgres).await;
    let roles = Roles::made(&databases).await;
    let url = databases.main.split_once("://").unwrap().1;
    let server = url.split_once('@').map_or(url, |(_, server)| server);
    let url = format!("postgres://{}@{server}", roles.login);
    databases.reach_at(In::Main, url);
    let one = [("databases.main.max_connections", "1")];
    let go_on = Arc::new(Notify::new());
    let stage = Stage::on(databases, &one, |rocket| {
        rocket
            .manage(Arc::clone(&go_on))
            .mount("/", routes![query, write, keep])
            .attach(Settlement::new())
    })
    .await;
    // The second round reuses the sessions.
    for guard in ["tx", "read", "plain", "tx", "read", "plain"] {
        let query = "SELECT current_user::text";
        let response = send(&stage, &format!("POST /query/{guard}"), query).await;
        assert_eq!(response.body, roles.application, "{guard}");
    }
    let response = stage.send("POST /notes/written").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    // The leaked session is ended by another session of the same login, which has that right.
    let response = stage.send("POST /keep/kept").await;
    assert_eq!(
        response.summary(),
        (500, Some("rolled-back")),
        "{response:?}"
    );
    go_on.notify_one();
    eventually("the session is replaced", async || {
        stage.send("POST /notes/after").await.summary() == (201, Some("committed"))
    })
    .await;
    let notes = stage.databases.notes(In::Main).await;
    assert_eq!(notes, ["after", "written"]);
    // Dropping the database ends the admin's session in it.
    let databases = stage.close().await;
    roles.drop().await;
    drop(databases);
}
