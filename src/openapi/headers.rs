//! The headers of responses, each described once.

use rocket::http::Method;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{Header, OpenApi, Ref, RefOr, Response, Schema};

use crate::http::{operations_of, tag_of};

/// Adds the headers of all responses.
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

/// The operation begins transactions, or takes leases.
fn settles(method: Method, operation: &Operation) -> bool {
    method != Method::Get && ["todos", "aggregates"].contains(&tag_of(operation))
}

fn always(response: &mut Response) {
    let id = text().format(Some(SchemaFormat::Custom("uuid".into())));
    let about = "By which log and audit trail know the request.";
    add(response, "X-Request-Id", about, id);
}

fn success(status: &str, settles: bool, response: &mut Response) {
    if status == "201" {
        let address = text().format(Some(SchemaFormat::Custom("uri-reference".into())));
        add(response, "Location", "Where it is.", address);
    }
    if settles {
        let committed = text().enum_values(Some(["committed"]));
        let about = "All databases have committed.";
        add(response, "Transaction-Outcome", about, committed);
    }
    if is_versioned(response) {
        let version = text().pattern(Some(r#"^"[0-9]+"$"#));
        add(response, "ETag", "Its version, for `If-Match`.", version);
    }
}

fn problem(name: &str, response: &mut Response) {
    match name {
        "MethodNotAllowed" => add(response, "Allow", "The methods of the address.", text()),
        "Unavailable" => {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer);
            add(response, "Retry-After", "After how many seconds.", seconds);
        }
        _ => {}
    }
    // Not always: a request may fail before it has anything outstanding.
    let mut outcome = Header::new(Ref::from_schema_name("Outcome"));
    let about = "What became of the request's transactions, if it had any.";
    outcome.description = Some(about.to_owned());
    let headers = &mut response.headers;
    headers.insert("Transaction-Outcome".to_owned(), RefOr::T(outcome));
}

/// The body is one aggregate.
fn is_versioned(response: &Response) -> bool {
    let aggregate = RefOr::Ref(Ref::from_schema_name("Aggregate"));
    let mut bodies = response.content.values();
    bodies.any(|body| matches!(body, RefOr::T(body) if body.schema.as_ref() == Some(&aggregate)))
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// A header that is always there.
fn add(response: &mut Response, name: &str, about: &str, schema: impl Into<RefOr<Schema>>) {
    let mut header = Header::new(schema);
    header.description = Some(about.to_owned());
    // utoipa's headers lack this field, but extensions are written beside the other fields.
    header.extensions = Some(Extensions::from_iter([("required", true)]));
    response.headers.insert(name.to_owned(), RefOr::T(header));
}
