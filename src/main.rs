//! Launches the reference service.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[rocket::main]
async fn main() -> ExitCode {
    let log = match rocket_tx_service::start_log(&rocket::Config::figment()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("cannot launch: {error}; correct it in Rocket.toml or the environment");
            return ExitCode::FAILURE;
        }
    };
    match rocket_tx_service::rocket().attach(log).launch().await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
