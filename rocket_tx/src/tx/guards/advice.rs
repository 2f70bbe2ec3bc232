//! Warnings in the debug profile, once for each route: code that works in a quiet test, and fails
//! under load.

use rocket::Request;
use rocket_db_pools::Database;

use crate::db::{Topic, TransactionPool, TransactionalDatabase};
use crate::tx::registry::Outstanding;

/// Warns if a `Tx` of `D` begins before the body of its request is read.
pub(super) fn advise_on_body<D: TransactionalDatabase>(request: &Request<'_>, pool: &D::Pool) {
    let Some(attachment) = pool.attachment().get() else {
        return;
    };
    if !attachment.advice.is_given() || !has_body(request) {
        return;
    }
    let route = request.route().map(ToString::to_string).unwrap_or_default();
    if attachment.advice.is_first(Topic::Body, &route) {
        tracing::warn!(
            %route, database = D::NAME,
            "`Tx` begins before the body of the request is read, so a slow client keeps a \
             connection, on SQLite the only writer; if the handler takes the body, take `Begin` \
             instead of `Tx` and call `begin` in the handler"
        );
    }
}

/// Whether the client sends a body. Rocket's local client sends no length, but the type of a body.
fn has_body(request: &Request<'_>) -> bool {
    let headers = request.headers();
    match headers.get_one("content-length") {
        Some(length) => length != "0",
        None => headers.contains("transfer-encoding") || request.content_type().is_some(),
    }
}

/// Warns if the request takes `D` while it holds a database that is attached later.
pub(super) fn advise_on_order<D: TransactionalDatabase>(outstanding: &Outstanding, pool: &D::Pool) {
    let Some(attachment) = pool.attachment().get() else {
        return;
    };
    if !attachment.advice.is_given() {
        return;
    }
    let Some(later) = outstanding.held_before_its_turn::<D>(attachment.rank) else {
        return;
    };
    let route = outstanding.route().unwrap_or_default();
    if attachment.advice.is_first(Topic::Order, &route) {
        tracing::warn!(
            %route,
            "this route takes `{}` while it holds `{later}`, which is attached later: under load it \
             fails with a 503, because it may not wait; take the databases in the order of \
             attachment, or attach `{}` first",
            <D as Database>::NAME, <D as Database>::NAME
        );
    }
}
