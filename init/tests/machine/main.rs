//! PID 1 as PID 1: each test runs the event loop in fresh PID and mount namespaces, drives it over its control socket and looks at what
//! its processes can do. The programs that it supervises are this very program, by their first argument.

// A test without clippy's mark for tests: this program has a main function of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod isolation;
mod program;
mod services;
mod shutdown;
mod world;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--as-pid1") => world::pid1(arguments.get(2).map_or("", String::as_str)),
        Some("--as-service") => program::run(&arguments[2..]),
        _ => {
            let trials = services::trials().into_iter().chain(isolation::trials()).chain(shutdown::trials());
            libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
        }
    }
}

/// A test with the name of its function.
fn trial(name: &str, test: fn(world::World)) -> Trial {
    Trial::test(name, move || {
        test(world::World::start()?);
        Ok(())
    })
}
