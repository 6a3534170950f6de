//! What PID 1 tells the executor, and what it hears back.

use std::fmt;
use std::path::PathBuf;

use garboard_supervisor::spec::ServiceSpec;
use serde::{Deserialize, Serialize};

/// The order to an executor, as JSON up to the end of its standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaunchRequest {
    /// The service.
    pub spec: ServiceSpec,
    /// What is to be done for it.
    pub task: Task,
    /// The directory of its cgroup; none on a kernel without version 2.
    pub cgroup: Option<PathBuf>,
    /// Where its messages go (`$NOTIFY_SOCKET`).
    pub notify_socket: PathBuf,
}

/// What an executor does.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Task {
    /// Write the files, then become the service.
    Run,
    /// Become a probe of the service.
    Probe {
        /// The probe's program and arguments.
        argv: Vec<String>,
    },
    /// Only write the files.
    WriteFiles,
}

/// Why an executor did not become what it should, as JSON on the same socket; nothing at all when it did.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchFailure {
    /// What it was doing.
    pub step: String,
    /// What went wrong, with all causes.
    pub error: String,
}

impl fmt::Display for LaunchFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.error)
    }
}
