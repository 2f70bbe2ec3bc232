//! OPTIONS, which every address answers by `methods`.

use utoipa::Modify;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{OpenApi, Response};

/// Adds OPTIONS to every address.
pub(super) struct Options;

impl Modify for Options {
    fn modify(&self, contract: &mut OpenApi) {
        for item in contract.paths.paths.values_mut() {
            let options = Operation::builder()
                .tag("options")
                .summary(Some("Which methods the address has."))
                .response("204", Response::new("`Allow` names them."));
            item.options = Some(options.build());
        }
    }
}
