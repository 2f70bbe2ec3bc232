//! `Idempotency-Key`: turns it on for endpoints that change something, and describes it in the
//! contract.

use rocket_tx_idempotency::idempotent;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Header, RefOr};

use crate::databases::Main;
use crate::http::{Endpoints, operations_of, responses};

/// Makes the endpoints accept `Idempotency-Key`, except those that only read. The keys are in the
/// database `main`.
pub(crate) fn accept_keys(mut endpoints: Endpoints) -> Endpoints {
    for (method, operation) in operations_of(&mut endpoints.contract) {
        if method == rocket::http::Method::Get {
            continue;
        }
        let key = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(KEY))
            .min_length(Some(1))
            .max_length(Some(512));
        let header = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .description(Some(ABOUT))
            .schema(Some(key));
        let parameters = operation.parameters.get_or_insert_default();
        parameters.push(header.build().into());
        for (status, response) in &mut operation.responses.responses {
            if let (true, RefOr::T(response)) = (status.starts_with('2'), response) {
                let about = "`true` if this is the stored response of an earlier request.";
                let replayed = ObjectBuilder::new().schema_type(Type::String);
                let mut header = Header::new(replayed.enum_values(Some(["true"])));
                header.description = Some(about.to_owned());
                let name = "Idempotency-Replayed".to_owned();
                response.headers.insert(name, RefOr::T(header));
            }
        }
        let failures = responses(&[400, 409, 422, 503]);
        operation.responses.responses.extend(failures);
    }
    Endpoints {
        routes: idempotent::<Main>(endpoints.routes),
        ..endpoints
    }
}

/// A key without quotes, or in quotes.
const KEY: &str = r#"^([!#-+\-.-:<-\[\]-~]{1,255}|"([!#-\[\]-~]|\\["\\]){1,255}")$"#;

const ABOUT: &str = "\
    A new random value for each request, and the same value when the request is repeated. Then the \
    request is done once: the repetition gets the same response, with `Idempotency-Replayed: true`. \
    The key may be in double quotes.";
