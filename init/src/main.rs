//! PID 1 of a Garboard machine; with an argument, one of its helpers.

use garboard_init::{kmsg, launch, startup, tasks};

fn main() {
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        Some("launch") => std::process::exit(launch::main()),
        Some(name) if tasks::find(name).is_some() => std::process::exit(task(name)),
        _ if std::process::id() == 1 => startup::main(),
        _ => {
            eprintln!("garboard-init is started by the kernel, as process 1");
            std::process::exit(1);
        }
    }
    // The kernel did not let the machine end, and panics if this process does.
    loop {
        std::thread::park();
    }
}

fn task(name: &str) -> i32 {
    match tasks::find(name).map_or(Ok(()), |task| task()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", kmsg::chain(error.as_ref()));
            1
        }
    }
}
