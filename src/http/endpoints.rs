//! The endpoints of one module of the service: their routes, and their entries in the contract.

use rocket::Route;
use rocket::http::Method;
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::tag::Tag;

/// The endpoints of one part of the service. The macro [`endpoints!`] creates this value.
pub(crate) struct Endpoints {
    /// The routes. Each is named after the part and the handler, such as `todos::create`.
    pub(crate) routes: Vec<Route>,
    /// The same handlers as OpenAPI operations. The tag is the part; the operation id is made of
    /// the part and the handler, such as `todos_create`.
    pub(crate) contract: OpenApi,
}

/// Collects the handlers of a part as [`Endpoints`]: `endpoints!("todos": list, create)`.
///
/// A handler is listed only in this call. Each handler needs two attributes:
/// `#[utoipa::path]` and Rocket's route attribute.
macro_rules! endpoints {
    ($part:literal: $($handler:ident),+ $(,)?) => {{
        #[derive(utoipa::OpenApi)]
        #[openapi(paths($($handler),+))]
        struct Contract;

        let contract = <Contract as utoipa::OpenApi>::openapi();
        Endpoints::new($part, rocket::routes![$($handler),+], contract)
    }};
}

pub(crate) use endpoints;

impl Endpoints {
    pub(crate) fn new(part: &str, mut routes: Vec<Route>, mut contract: OpenApi) -> Self {
        for route in &mut routes {
            let handler = route.name.as_deref().unwrap_or_default();
            route.name = Some(format!("{part}::{handler}").into());
        }
        for (_, operation) in operations_of(&mut contract) {
            let handler = operation.operation_id.take().unwrap_or_default();
            operation.operation_id = Some(format!("{part}_{handler}"));
            operation.tags = Some(vec![part.to_owned()]);
        }
        contract.tags = Some(vec![Tag::new(part)]);
        Self { routes, contract }
    }
}

/// Returns all operations of a contract, each with its method.
pub(crate) fn operations_of(
    contract: &mut OpenApi,
) -> impl Iterator<Item = (Method, &mut Operation)> {
    contract.paths.paths.values_mut().flat_map(|item| {
        let all = [
            (Method::Get, &mut item.get),
            (Method::Put, &mut item.put),
            (Method::Post, &mut item.post),
            (Method::Patch, &mut item.patch),
            (Method::Delete, &mut item.delete),
        ];
        all.into_iter()
            .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
    })
}

/// Returns the part of the service that an operation belongs to.
pub(crate) fn tag_of(operation: &Operation) -> &str {
    let tags = operation.tags.as_deref().unwrap_or_default();
    tags.first().map_or("", String::as_str)
}
