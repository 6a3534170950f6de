//! The process of the pause image. It holds a pod's namespaces while the pod lives, reaps the
//! orphans of pods that share their process namespace, and ends on SIGTERM or SIGINT.

use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() -> ExitCode {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM] {
        awaited.add(signal);
    }
    // Blocked, a signal that arrives before the first wait is kept. As a namespace's first process,
    // this one gets only signals that it asks for.
    if let Err(error) = awaited.thread_block() {
        eprintln!("pause: blocking signals: {error}");
        return ExitCode::FAILURE;
    }
    loop {
        match awaited.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return ExitCode::SUCCESS,
            Err(Errno::EINTR) => {}
            Err(error) => {
                eprintln!("pause: waiting for a signal: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Reaps every child that has ended: several may stand behind one SIGCHLD.
fn reap() {
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
