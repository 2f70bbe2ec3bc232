//! Turns keys on for routes.

use std::any::{TypeId, type_name};
use std::marker::PhantomData;
use std::sync::Arc;

use rocket::http::Method;
use rocket::response::Responder;
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Route};
use rocket_tx::{Error, Problem};

use crate::current::Current;
use crate::initializer::Shared;
use crate::key::Key;
use crate::keyed::{AnyKeyed, Keyed};
use crate::problems;
use crate::resource::ResponseRow;
use crate::rows::KeyDatabase;

/// Returns the same routes; those that may change something accept `Idempotency-Key`. The keys are
/// in the database `D`.
///
/// Routes for GET, HEAD, OPTIONS and TRACE are returned unchanged: the header has no effect there.
///
/// ```no_run
/// # use rocket::{post, routes};
/// # use rocket_tx::db::{self, SqlitePool};
/// # use rocket_tx::rocket_db_pools::{self, Database};
/// # use rocket_tx::Settlement;
/// # #[derive(Database)] #[database("main")] struct Main(SqlitePool);
/// # #[post("/")] fn create() {}
/// use rocket_tx_idempotency::{self as idempotency, idempotent};
///
/// let rocket = rocket::build()
///     .attach(db::init::<Main>())
///     .attach(idempotency::init::<Main>().shared_keys())
///     .attach(Settlement::new())
///     .mount("/", idempotent::<Main>(routes![create]));
/// ```
///
/// The handler and its guards run inside. Decorators that are applied to the returned routes run
/// outside, also for a response that is sent again. Apply [`rocket_tx::tx::bounded`] outside, so that
/// its limit covers the search for a stored response too.
pub fn idempotent<D: KeyDatabase>(routes: Vec<Route>) -> Vec<Route> {
    decorate::<D>(routes, false)
}

/// Returns the same routes; those that may change something require `Idempotency-Key`. A request
/// without it is refused with a 400. Otherwise like [`idempotent`].
pub fn required<D: KeyDatabase>(routes: Vec<Route>) -> Vec<Route> {
    decorate::<D>(routes, true)
}

fn decorate<D: KeyDatabase>(routes: Vec<Route>, is_required: bool) -> Vec<Route> {
    let decorated = |mut route: Route| {
        if !is_safe(route.method) {
            route.handler = Box::new(Idempotent::<D> {
                handler: route.handler,
                is_required,
                database: PhantomData,
            });
        }
        route
    };
    routes.into_iter().map(decorated).collect()
}

/// Returns `true` for methods that change nothing.
/// <https://www.rfc-editor.org/rfc/rfc9110#name-safe-methods>
fn is_safe(method: Method) -> bool {
    matches!(
        method,
        Method::Get | Method::Head | Method::Options | Method::Trace
    )
}

struct Idempotent<D> {
    handler: Box<dyn Handler>,
    is_required: bool,
    database: PhantomData<fn() -> D>,
}

impl<D> Clone for Idempotent<D> {
    fn clone(&self) -> Self {
        Self {
            handler: self.handler.clone(),
            is_required: self.is_required,
            database: PhantomData,
        }
    }
}

#[rocket::async_trait]
impl<D: KeyDatabase> Handler for Idempotent<D> {
    async fn handle<'r>(&self, request: &'r Request<'_>, mut data: Data<'r>) -> Outcome<'r> {
        match self.start(request, &mut data).await {
            Ok(()) => self.handler.handle(request, data).await,
            Err(Refusal::Status(status)) => Outcome::Error(status),
            Err(Refusal::Error(error)) => respond(request, error),
        }
    }
}

/// Why the handler is not called.
enum Refusal {
    /// The hook for callers has refused the request.
    Status(rocket::http::Status),
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Error(Error::Problem(Box::new(problem)))
    }
}

impl<D: KeyDatabase> Idempotent<D> {
    async fn start(&self, request: &Request<'_>, data: &mut Data<'_>) -> Result<(), Refusal> {
        /// The most that Rocket lets a decorator see of a body.
        const BEGINNING: usize = 512;

        if let Some(current) = Current::get(request) {
            // Another route has forwarded the request, or the route is wrapped twice.
            return match current.database() == TypeId::of::<D>() {
                true => Ok(()),
                false => Err(two_databases::<D>(current.database_name()).into()),
            };
        }
        let shared = request.rocket().state::<Arc<Shared<D>>>();
        let shared = shared.ok_or_else(not_set_up::<D>)?;
        let key = match Key::of(request) {
            Ok(Some(key)) => key,
            Ok(None) if self.is_required || shared.settings.is_required => {
                return Err(problems::missing().into());
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(problems::bad(&error).into()),
        };
        let caller = shared.caller_of(request).await.map_err(Refusal::Status)?;
        let beginning = data.peek(BEGINNING).await.to_vec();
        let is_whole = data.peek_complete();
        let keyed = Keyed::start(request, shared, &caller, &key, beginning.clone())?;
        ResponseRow::join(&keyed)?;
        Current::set(request, Arc::clone(&keyed) as Arc<dyn AnyKeyed>);
        if is_whole {
            keyed.body_is_known(&beginning).await?;
        }
        Ok(())
    }
}

fn not_set_up<D>() -> Error {
    let database = type_name::<D>();
    let reason = format!(
        "idempotency keys are not set up in the database `{database}`; add \
         `.attach(rocket_tx_idempotency::init::<{database}>())` to the launch code"
    );
    Error::NotSetUp(reason.into())
}

fn two_databases<D>(first: &str) -> Error {
    let second = type_name::<D>();
    let reason = format!(
        "this request has passed routes with idempotency keys in two databases, `{first}` and \
         `{second}`; name one database in `idempotent` and `required`"
    );
    Error::NotSetUp(reason.into())
}

fn respond<'r>(request: &'r Request<'_>, error: Error) -> Outcome<'r> {
    if let Error::NotSetUp(_) = error {
        tracing::error!(uri = %request.uri(), "{error}");
    }
    match error.respond_to(request) {
        Ok(response) => Outcome::Success(response),
        Err(status) => Outcome::Error(status),
    }
}
