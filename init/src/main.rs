//! PID 1 of a Garboard machine; with `launch`, the executor that becomes a service.

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == "launch") {
        std::process::exit(garboard_init::launch::main());
    }
    if std::process::id() != 1 {
        eprintln!("garboard-init is started by the kernel, as process 1");
        std::process::exit(1);
    }
    garboard_init::boot::main();
    // The kernel did not let the machine end, and panics if this process does.
    loop {
        std::thread::park();
    }
}
