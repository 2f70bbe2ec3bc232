//! The descriptions of the response headers in the contract.

use rocket::http::Method;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{Header, OpenApi, Ref, RefOr, Response, Schema};

use crate::http::{operations_of, tag_of};

/// Adds the headers to all responses of the contract.
pub(super) fn add_to(contract: &mut OpenApi) {
    for (method, operation) in operations_of(contract) {
        let settles = settles(method, operation);
        for (status, response) in &mut operation.responses.responses {
            if let RefOr::T(response) = response {
                always(response);
                success(status, settles, response);
            }
        }
    }
    let components = contract.components.get_or_insert_default();
    for (name, response) in &mut components.responses {
        if let RefOr::T(response) = response {
            always(response);
            problem(name, response);
        }
    }
}

/// Returns `true` if the operation begins transactions or takes leases: every operation of todos
/// and aggregates that does not only read.
fn settles(method: Method, operation: &Operation) -> bool {
    method != Method::Get && ["todos", "aggregates"].contains(&tag_of(operation))
}

fn always(response: &mut Response) {
    let id = text().format(Some(SchemaFormat::Custom("uuid".into())));
    let about = "The id of the request, which the log and the audit trail use too.";
    add(response, "X-Request-Id", about, id);
}

fn success(status: &str, settles: bool, response: &mut Response) {
    if status == "201" {
        let address = text().format(Some(SchemaFormat::Custom("uri-reference".into())));
        add(
            response,
            "Location",
            "The URL of what was created.",
            address,
        );
    }
    if settles {
        let committed = text().enum_values(Some(["committed"]));
        let about = "All databases have committed.";
        add(response, "Transaction-Outcome", about, committed);
        // This header is optional.
        let mut pending = Header::new(text());
        let about = "The databases that could not be reached to carry out the decision to commit. \
                     They are committed when they are back.";
        pending.description = Some(about.to_owned());
        let name = "Transaction-Pending".to_owned();
        response.headers.insert(name, RefOr::T(pending));
    }
    if is_versioned(response) {
        let version = text().pattern(Some(r#"^"[0-9]+"$"#));
        add(
            response,
            "ETag",
            "The version of the aggregate, for `If-Match`.",
            version,
        );
    }
}

fn problem(name: &str, response: &mut Response) {
    match name {
        "MethodNotAllowed" => add(response, "Allow", "The methods of the path.", text()),
        "Unavailable" => {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer);
            add(
                response,
                "Retry-After",
                "The number of seconds to wait before a retry.",
                seconds,
            );
        }
        _ => {}
    }
    // This header is optional: a request that fails before anything is outstanding has no outcome.
    let mut outcome = Header::new(Ref::from_schema_name("Outcome"));
    let about = "The outcome of the request's transactions, if it had any.";
    outcome.description = Some(about.to_owned());
    let headers = &mut response.headers;
    headers.insert("Transaction-Outcome".to_owned(), RefOr::T(outcome));
}

/// Returns `true` if the body is one aggregate.
fn is_versioned(response: &Response) -> bool {
    let aggregate = RefOr::Ref(Ref::from_schema_name("Aggregate"));
    let mut bodies = response.content.values();
    bodies.any(|body| matches!(body, RefOr::T(body) if body.schema.as_ref() == Some(&aggregate)))
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// Adds a header that the response always has.
fn add(response: &mut Response, name: &str, about: &str, schema: impl Into<RefOr<Schema>>) {
    let mut header = Header::new(schema);
    header.description = Some(about.to_owned());
    // utoipa has no field `required` for headers. Extensions are serialized beside the other
    // fields.
    header.extensions = Some(Extensions::from_iter([("required", true)]));
    response.headers.insert(name.to_owned(), RefOr::T(header));
}
