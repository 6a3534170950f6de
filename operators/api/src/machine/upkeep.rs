//! How a machine is watched over, and what it keeps of its logs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The hardware watchdog of a machine.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineWatchdog {
    /// Whether it runs. Some hardware cannot be stopped once it was started; the machine then says so and goes on feeding it. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Time without a sign of life of the machine's first process after which the hardware restarts it, seconds. Hardware that cannot have
    /// this time has its own, and the machine says so. Default: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 600))]
    pub timeout_seconds: Option<u32>,
}

impl MachineWatchdog {
    /// Time after which the machine restarts, seconds; none when it does not.
    pub fn timeout_seconds(&self) -> Option<u32> {
        self.enabled.unwrap_or(true).then(|| self.timeout_seconds.unwrap_or(60))
    }
}

/// Logs of a machine's services.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineLogs {
    /// Size at which a file of a service's log is put aside and another begun, MiB. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub max_size_mebibytes: Option<u32>,
    /// Files that are kept of each service, the present one included; when there are more, the oldest go. The kernel's log counts as a
    /// service's. With the size this is the most room that the log of one service takes. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 16))]
    pub max_files: Option<u32>,
}

impl MachineLogs {
    /// Size at which a file is put aside, MiB.
    pub fn max_size_mebibytes(&self) -> u32 {
        self.max_size_mebibytes.unwrap_or(4)
    }

    /// Files that are kept of each service.
    pub fn max_files(&self) -> u32 {
        self.max_files.unwrap_or(4)
    }
}
