//! The audit trail: one line for every change, written in the transaction of the change.

use std::time::{SystemTime, UNIX_EPOCH};

use rocket::request::{FromRequest, Outcome};
use rocket::serde::json::Json;
use rocket::{Request, Route, get, routes};
use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;

use crate::db::Connection;
use crate::{Begin, Problem, Read, RequestId, with_backend};

use super::openapi::Fails;
use super::page::Page;
use super::{Audit, Error};

pub(super) fn routes() -> Vec<Route> {
    routes![list]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list))]
pub(super) struct Paths;

/// One line for every change, newest first. The next page is `?after=` the `id` of the last line.
#[utoipa::path(
    params(Page<i64>),
    responses((status = 200, description = "Newest first.", body = Vec<Line>), Fails<503>)
)]
#[get("/audit")]
async fn list(
    page: Result<Page<i64>, Problem>,
    mut read: Read<Audit>,
) -> Result<Json<Vec<Line>>, Error> {
    Ok(Json(lines(&mut read, page?).await?))
}

/// Writes lines for this request. Ask for it after the guards of `main`: databases are taken in
/// the order of attachment.
pub(super) struct Trail {
    begin: Begin<Audit>,
    request: RequestId,
}

impl Trail {
    /// Notes what was done, and to what, in the request's transaction of the audit database.
    pub(super) async fn note(&self, action: &str, subject: &str) -> Result<(), crate::Error> {
        let mut tx = self.begin.begin().await?;
        insert(&mut tx, self.request, action, subject).await?;
        Ok(())
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Trail {
    type Error = crate::Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, crate::Error> {
        let begin = Begin::from_request(request).await;
        match request.guard::<RequestId>().await {
            Outcome::Success(id) => begin.map(|begin| Self { begin, request: id }),
            // Infallible.
            _ => Outcome::Error((
                crate::Error::NoSettlement.status(),
                crate::Error::NoSettlement,
            )),
        }
    }
}

/// A line of the trail.
#[derive(Debug, Serialize, FromRow, ToSchema)]
#[schema(as = AuditLine)]
struct Line {
    id: i64,
    request_id: String,
    action: String,
    subject: String,
    /// Milliseconds since 1970.
    at: i64,
}

async fn lines(connection: &mut Connection, page: Page<i64>) -> sqlx::Result<Vec<Line>> {
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
    connection: &mut Connection,
    request: RequestId,
    action: &str,
    subject: &str,
) -> sqlx::Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let at = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    with_backend!(connection, |db| {
        sqlx::query("INSERT INTO audit (request_id, action, subject, at) VALUES ($1, $2, $3, $4)")
            .bind(request.to_string())
            .bind(action)
            .bind(subject)
            .bind(at)
            .execute(db)
            .await?;
    });
    Ok(())
}
