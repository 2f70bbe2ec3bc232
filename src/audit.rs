//! The audit trail: one entry for every change. A request writes its entries in its transaction of
//! the audit database.

use std::time::{SystemTime, UNIX_EPOCH};

use rocket::request::{FromRequest, Outcome};
use rocket::serde::json::Json;
use rocket::{Request, get};
use rocket_tx::db::UrlConnection;
use rocket_tx::{Begin, Problem, Read, RequestId, with_backend};
use serde::Serialize;
use sqlx::{FromRow, QueryBuilder};
use utoipa::ToSchema;

use crate::databases::Audit;
use crate::http::{Endpoints, Error, Fails, Page, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("audit": list)
}

/// Lists the audit trail, one page at a time, newest first. Every change has one entry.
///
/// For the next page, set `?after=` to the last `id` of this one.
#[utoipa::path(
    params(Page<i64>),
    responses((status = 200, description = "Newest first.", body = Vec<AuditLine>), Fails<503>)
)]
#[get("/audit")]
async fn list(
    page: Result<Page<i64>, Problem>,
    mut read: Read<Audit>,
) -> Result<Json<Vec<AuditLine>>, Error> {
    Ok(Json(entries(&mut read, page?).await?))
}

/// A guard that writes audit entries about the request.
///
/// In a handler's arguments, put it after the guards of `main`: a request must take its databases
/// in the order in which they are attached.
pub(crate) struct AuditLog {
    begin: Begin<Audit>,
    request: RequestId,
}

impl AuditLog {
    /// Writes an entry with `action` and its `subject`, in the request's transaction of the audit
    /// database.
    pub(crate) async fn record(&self, action: &str, subject: &str) -> Result<(), rocket_tx::Error> {
        self.record_all(action, &[subject]).await
    }

    /// Writes an entry with `action` for each of the `subjects`, with one statement.
    pub(crate) async fn record_all(
        &self,
        action: &str,
        subjects: &[&str],
    ) -> Result<(), rocket_tx::Error> {
        if subjects.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin.begin().await?;
        Ok(insert(&mut tx, self.request, action, subjects).await?)
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for AuditLog {
    type Error = rocket_tx::Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, rocket_tx::Error> {
        let begin = Begin::from_request(request).await;
        match request.guard::<RequestId>().await {
            Outcome::Success(id) => begin.map(|begin| Self { begin, request: id }),
            // Unreachable: the guard `RequestId` cannot fail.
            _ => {
                let error = rocket_tx::Error::NoSettlement;
                Outcome::Error((error.status(), error))
            }
        }
    }
}

/// An entry of the audit trail.
#[derive(Debug, Serialize, FromRow, ToSchema)]
struct AuditLine {
    id: i64,
    request_id: String,
    action: String,
    subject: String,
    /// The time of the change, in milliseconds since 1970-01-01 UTC.
    at: i64,
}

async fn entries(connection: &mut UrlConnection, page: Page<i64>) -> sqlx::Result<Vec<AuditLine>> {
    with_backend!(connection, |db| {
        sqlx::query_as(
            "SELECT id, request_id, action, subject, at FROM audit \
             WHERE id < $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(page.after.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit))
        .fetch_all(db)
        .await
    })
}

async fn insert(
    connection: &mut UrlConnection,
    request: RequestId,
    action: &str,
    subjects: &[&str],
) -> sqlx::Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let at = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    with_backend!(connection, |db| {
        let mut insert = QueryBuilder::new("INSERT INTO audit (request_id, action, subject, at) ");
        insert.push_values(subjects, |mut row, subject| {
            row.push_bind(request.to_string())
                .push_bind(action)
                .push_bind(*subject)
                .push_bind(at);
        });
        insert.build().execute(db).await.map(drop)
    })
}
