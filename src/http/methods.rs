//! Responses for the methods that an address does not have: OPTIONS, and 405 for the rest.
//!
//! Rocket alone responds 404 where the path is known and the method is not.

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

/// Adds, for each path of `routes`, a route for every method that it lacks.
pub(crate) fn answer_every_method(mut routes: Vec<Route>) -> Vec<Route> {
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
            // Behind every route that does something: `/todos/<id>` also where `<id>` is the last
            // part of another address.
            route.rank += 20;
            routes.push(route);
        }
    }
    routes
}

/// Responds with the methods of an address.
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
                    format!("{method} is not for this address; it has {}.", self.0),
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
