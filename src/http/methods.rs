//! Responses to methods for which a path has no handler: 204 to OPTIONS, and 405 to the others.
//!
//! Without this module, Rocket responds 404 if the path exists but has no handler for the method.

use std::collections::BTreeMap;

use rocket::http::{Header, Method, Status};
use rocket::response::Responder;
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Response, Route};
use rocket_tx::Problem;

const METHODS: [Method; 8] = [
    Method::Get,
    Method::Head,
    Method::Post,
    Method::Put,
    Method::Patch,
    Method::Delete,
    Method::Options,
    Method::Trace,
];

/// Adds a route for every method that a path of `routes` does not have.
pub(crate) fn add_missing_methods(mut routes: Vec<Route>) -> Vec<Route> {
    let mut known: BTreeMap<String, Vec<Method>> = BTreeMap::new();
    for route in &routes {
        let methods = known.entry(route.uri.path().to_owned()).or_default();
        methods.push(route.method);
        // Rocket responds to HEAD with the route for GET.
        if route.method == Method::Get {
            methods.push(Method::Head);
        }
    }
    for (path, mut methods) in known {
        let missing: Vec<_> = METHODS
            .into_iter()
            .filter(|m| !methods.contains(m))
            .collect();
        methods.push(Method::Options);
        let names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
        let allow = names.join(", ");
        for method in missing {
            let mut route = Route::new(method, &path, AllowedMethods(allow.clone()));
            route.name = Some("allowed methods".into());
            // Rank these routes after all others. Otherwise the 405 for GET
            // `/aggregates/todos/complete`, a path that has only POST, would come before GET
            // `/aggregates/todos/<id>` for the id `complete`.
            route.rank += 20;
            routes.push(route);
        }
    }
    routes
}

/// A handler that responds with the methods of a path.
#[derive(Clone)]
struct AllowedMethods(String);

#[rocket::async_trait]
impl Handler for AllowedMethods {
    async fn handle<'r>(&self, request: &'r Request<'_>, _: Data<'r>) -> Outcome<'r> {
        let mut response = match request.method() {
            Method::Options => Response::build().status(Status::NoContent).finalize(),
            method => {
                let problem = Problem::new(
                    Status::MethodNotAllowed,
                    "method-not-allowed",
                    format!("{method} is not allowed here. Allowed: {}.", self.0),
                );
                match problem.respond_to(request) {
                    Ok(response) => response,
                    Err(status) => return Outcome::Error(status),
                }
            }
        };
        response.set_header(Header::new("Allow", self.0.clone()));
        Outcome::Success(response)
    }
}
