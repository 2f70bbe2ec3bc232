//! The guard of a library that reads on a connection which no handler gets.

use std::sync::Arc;

use rocket::request::{FromRequest, Outcome, Request};
use rocket_tx::Outstanding;
use rocket_tx::extend::{Lookup, attached};

use super::Main;

/// A library that reads.
pub struct Library(pub Lookup<Main>);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Library {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        let outstanding: &Arc<Outstanding> = Outstanding::of(request).unwrap();
        let database = attached::<Main>(request).unwrap();
        let lookup = Lookup::<Main>::in_request(outstanding, database).await;
        Outcome::Success(Self(lookup.unwrap()))
    }
}
