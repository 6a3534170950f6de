//! What is reported about a service and about the machine: plain data for the control socket.

use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::spec::{Condition, ServiceName};

/// The state of a service as it is shown to people. Times are uptimes (CLOCK_BOOTTIME), milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "name")]
pub enum PublicState {
    /// Not started: other services have not reached what it requires.
    Waiting {
        /// What is missing.
        on: Vec<Condition>,
    },
    /// Being set up; its program does not run yet.
    Starting,
    /// Its program runs.
    Running {
        /// Whether it serves.
        ready: bool,
    },
    /// Asked to end, or being killed.
    Stopping {
        /// Why.
        reason: String,
    },
    /// Ended, and not to be started again.
    Finished,
    /// Ended badly, and not to be started again by itself.
    Failed {
        /// Why, in words.
        reason: String,
    },
    /// Ended, to be started again.
    BackOff {
        /// When.
        until_ms: u64,
        /// Why it ended, in words.
        reason: String,
    },
}

/// What is known of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// Its state.
    pub state: PublicState,
    /// The number of its main process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Uptime of the machine at which the state was entered, milliseconds.
    pub since_ms: u64,
    /// How often it was started again after it had ended unasked, since it was declared.
    pub restarts: u32,
    /// Whether it serves (a one-shot: whether it has succeeded).
    pub ready: bool,
    /// Whether it failed several times without a stable run between.
    pub crash_looping: bool,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// What it says of itself (`STATUS=` of sd_notify), or what the last failed probe said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The last lines of its output, while it is failing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    /// What it waits for, in words such as `etcd to be ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_on: Vec<String>,
    /// Memory of its cgroup, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processor time of its cgroup, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_usec: Option<u64>,
    /// Identifies the specification that it runs with; changes whenever that changes.
    pub spec_hash: String,
}

/// What became of one service of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It is new.
    Added,
    /// It runs on undisturbed.
    Unchanged,
    /// Only its files changed: they are written anew, and it is told if it asked for that.
    Refreshed,
    /// It changed and is started again.
    Restarted,
    /// It is no longer declared and ends.
    Removed,
}

/// The answer for one service of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetResult {
    /// The service.
    pub name: ServiceName,
    /// What became of it.
    pub change: Change,
}
