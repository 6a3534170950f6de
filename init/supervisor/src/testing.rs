//! What tests of several crates make.

use crate::spec::ServiceName;
use crate::status::{PublicState, ServiceStatus};

/// A service in a state, of which nothing else is known; ready if it runs and is.
#[allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by panicking")]
pub fn status(name: &str, state: PublicState) -> ServiceStatus {
    ServiceStatus {
        name: ServiceName::try_from(name).unwrap(),
        ready: state == PublicState::Running { ready: true },
        state,
        pid: None,
        since_ms: 0,
        restarts: 0,
        crash_looping: false,
        last_exit: None,
        message: String::new(),
        last_lines: Vec::new(),
        waiting_on: Vec::new(),
        memory_bytes: None,
        cpu_usec: None,
        spec_hash: String::new(),
    }
}
