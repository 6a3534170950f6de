//! Waiting for the order to end. A container's first process gets only the signals that it asks for.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use crate::Outcome;

/// The signals that end a container, blocked so that a thread can wait for them.
pub struct Stop(SigSet);

impl Stop {
    /// Blocks the signals in this thread and in those that it starts later: call it first.
    pub fn block() -> Result<Self, String> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().map_err(|error| format!("blocking signals: {error}"))?;
        Ok(Self(signals))
    }

    /// Waits for the first of them.
    pub fn wait(&self) -> Result<Signal, String> {
        loop {
            match self.0.wait() {
                Ok(signal) => return Ok(signal),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(format!("waiting for a signal: {error}")),
            }
        }
    }
}

/// Waits for `seconds`, or until stopped.
pub fn sleep(seconds: Option<u64>) -> Outcome {
    let stop = Stop::block()?;
    if let Some(seconds) = seconds {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds));
            std::process::exit(0);
        });
    }
    stop.wait().map(drop)
}
