//! The hardware watchdog: it restarts a machine whose PID 1 no longer goes round its loop.

use std::path::Path;
use std::time::Duration;

use garboard_sys::watchdog::Watchdog;
use tracing::{info, warn};

use crate::kmsg::chain;

/// Time without a round of the loop after which the machine restarts: six heartbeats.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the last steps of a shutdown, which happen outside of the loop.
pub const LAST_TIMEOUT: Duration = Duration::from_secs(180);

/// Starts the machine's watchdog, if it has one.
pub fn open() -> Option<Watchdog> {
    let path = Path::new("/dev/watchdog0");
    if !path.exists() {
        info!("there is no hardware watchdog");
        return None;
    }
    let watchdog = match Watchdog::open(path) {
        Ok(watchdog) => watchdog,
        Err(error) => {
            warn!(error = %chain(&error), "the hardware watchdog is not used");
            return None;
        }
    };
    let name = watchdog.identity().unwrap_or_default();
    match watchdog.set_timeout(TIMEOUT) {
        Ok(timeout) => info!(name, seconds = timeout.as_secs(), "the hardware watchdog runs"),
        Err(error) => warn!(name, error = %chain(&error), "the hardware watchdog runs with its own timeout"),
    }
    Some(watchdog)
}
