//! The hardware watchdog: it restarts a machine whose PID 1 no longer goes round its loop.

use std::path::Path;
use std::time::Duration;

use garboard_sys::watchdog::Watchdog;
use tracing::{info, warn};

use crate::kmsg::chain;

/// Time for the last steps of a shutdown, which happen outside of the loop.
pub const LAST_TIMEOUT: Duration = Duration::from_secs(180);

const DEVICE: &str = "/dev/watchdog0";

/// Starts the machine's watchdog, if it has one. Returns beside it what is wrong with it, in words, if anything is.
pub fn open(timeout: Duration) -> (Option<Watchdog>, Option<String>) {
    let path = Path::new(DEVICE);
    if !path.exists() {
        info!("there is no hardware watchdog");
        return (None, None);
    }
    let watchdog = match Watchdog::open(path) {
        Ok(watchdog) => watchdog,
        Err(error) => {
            let problem = format!("the hardware watchdog is not used: {}", chain(&error));
            warn!(problem);
            return (None, Some(problem));
        }
    };
    let problem = set(&watchdog, timeout);
    (Some(watchdog), problem)
}

/// Sets the time after which it restarts the machine. Returns what is wrong in words, if anything is.
pub fn set(watchdog: &Watchdog, timeout: Duration) -> Option<String> {
    let name = watchdog.identity().unwrap_or_default();
    match watchdog.set_timeout(timeout) {
        Ok(timeout) => {
            info!(name, seconds = timeout.as_secs(), "the hardware watchdog runs");
            None
        }
        Err(error) => {
            let problem = format!("the hardware watchdog {name} runs with its own timeout: {}", chain(&error));
            warn!(problem);
            Some(problem)
        }
    }
}

/// Stops it. Where that cannot be, it comes back, to be fed on, with the reason in words.
pub fn stop(mut watchdog: Watchdog) -> Result<(), (Watchdog, String)> {
    if !watchdog.can_stop() {
        let problem = "the hardware watchdog cannot be stopped: its driver does not allow it".to_owned();
        return Err((watchdog, problem));
    }
    match watchdog.stop() {
        Ok(()) => {
            info!("the hardware watchdog is off");
            Ok(())
        }
        Err(error) => {
            let problem = format!("the hardware watchdog cannot be stopped: {}", chain(&error));
            Err((watchdog, problem))
        }
    }
}
