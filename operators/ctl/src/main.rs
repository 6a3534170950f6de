//! `garboardctl`: the person's side of the machine API.

mod cli;
mod commands;
mod config;
mod explain;
mod files;
mod output;
mod wait;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return explain::report(&anyhow::Error::new(error).context("start")),
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => explain::report(&error),
    }
}
