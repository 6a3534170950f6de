//! What crosses the control socket, beside the types of garboard-supervisor.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::proto;

/// Where the socket lies; only root may connect.
pub const CONTROL_SOCKET: &str = "/run/garboard/control.sock";

/// Where the socket for those who may only delay shutdowns lies.
pub const INHIBIT_SOCKET: &str = "/run/garboard/inhibit.sock";

/// How the machine ends its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ShutdownKind {
    /// It starts again.
    Reboot,
    /// It is switched off.
    PowerOff,
    /// It stands still with its power on.
    Halt,
}

/// Which of a service's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Whether it serves.
    Readiness,
    /// Whether it is hung.
    Liveness,
}

/// What the machine as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachinePhase {
    /// Its work.
    Running,
    /// Waiting for inhibitors before it shuts down.
    PreparingShutdown {
        /// How it will end.
        kind: ShutdownKind,
        /// Uptime at which it no longer waits, milliseconds.
        deadline_ms: u64,
    },
    /// Stopping its services.
    Stopping {
        /// How it will end.
        kind: ShutdownKind,
    },
}

/// How the machine is watched over, and how much it keeps of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upkeep {
    /// Time without a round of PID 1's loop after which the hardware watchdog restarts the machine, seconds, 30..=600; none: it is off.
    pub watchdog_seconds: Option<u32>,
    /// Size at which a file of lines is put aside, bytes, at least 64 KiB.
    pub log_file_bytes: u64,
    /// Files that are kept of each source, the present one included, 2..=16.
    pub log_files: u32,
}

impl Default for Upkeep {
    /// What counts until something else is declared.
    fn default() -> Self {
        Self { watchdog_seconds: Some(60), log_file_bytes: 4 << 20, log_files: 4 }
    }
}

impl Upkeep {
    /// Why it cannot be; none when it can.
    pub fn problem(&self) -> Option<String> {
        let Self { watchdog_seconds, log_file_bytes, log_files } = self;
        match watchdog_seconds {
            Some(seconds) if !(30..=600).contains(seconds) => {
                Some(format!("watchdogSeconds is {seconds}; 30 to 600 are allowed"))
            }
            _ if *log_file_bytes < 64 << 10 => {
                Some(format!("logFileBytes is {log_file_bytes}; at least 65536 are allowed"))
            }
            _ if !(2..=16).contains(log_files) => Some(format!("logFiles is {log_files}; 2 to 16 are allowed")),
            _ => None,
        }
    }
}

/// Whose lines are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// The kernel's, and PID 1's own.
    Kernel,
    /// Those of a service.
    Service(garboard_supervisor::spec::ServiceName),
}

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Time since 1970, microseconds.
    pub unix_usec: i64,
    /// The line without its end.
    pub text: String,
}

/// What PID 1 knows of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineInfo {
    /// Identifies this run of the kernel (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Identifies the installation (machine-id(5)).
    pub machine_id: String,
    /// Version of the running image.
    pub version: String,
    /// The verity hash of the root file system, hexadecimal; empty when the root is not verified.
    pub root_hash: String,
    /// Label of the root partition that was booted.
    pub slot: String,
    /// The device of STATE; none when it could not be had.
    pub state_device: Option<PathBuf>,
    /// The device of DATA; none when it is not mounted (yet).
    pub data_device: Option<PathBuf>,
    /// What is wrong with the machine's disks and mounts, in words.
    pub problems: Vec<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Time since the kernel started, milliseconds.
    pub uptime_ms: u64,
}

impl From<ShutdownKind> for proto::ShutdownKind {
    fn from(kind: ShutdownKind) -> Self {
        match kind {
            ShutdownKind::Reboot => Self::Reboot,
            ShutdownKind::PowerOff => Self::PowerOff,
            ShutdownKind::Halt => Self::Halt,
        }
    }
}

/// A number that the protocol gives no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no {1}")]
pub struct UnknownValue(pub i32, pub &'static str);

impl TryFrom<i32> for ShutdownKind {
    type Error = UnknownValue;

    fn try_from(number: i32) -> Result<Self, UnknownValue> {
        match proto::ShutdownKind::try_from(number) {
            Ok(proto::ShutdownKind::Reboot) => Ok(Self::Reboot),
            Ok(proto::ShutdownKind::PowerOff) => Ok(Self::PowerOff),
            Ok(proto::ShutdownKind::Halt) => Ok(Self::Halt),
            Ok(proto::ShutdownKind::Unspecified) | Err(_) => Err(UnknownValue(number, "kind of shutdown")),
        }
    }
}

impl From<ProbeKind> for proto::ProbeKind {
    fn from(kind: ProbeKind) -> Self {
        match kind {
            ProbeKind::Readiness => Self::Readiness,
            ProbeKind::Liveness => Self::Liveness,
        }
    }
}

impl TryFrom<i32> for ProbeKind {
    type Error = UnknownValue;

    fn try_from(number: i32) -> Result<Self, UnknownValue> {
        match proto::ProbeKind::try_from(number) {
            Ok(proto::ProbeKind::Readiness) => Ok(Self::Readiness),
            Ok(proto::ProbeKind::Liveness) => Ok(Self::Liveness),
            Ok(proto::ProbeKind::Unspecified) | Err(_) => Err(UnknownValue(number, "kind of probe")),
        }
    }
}

impl From<MachinePhase> for proto::MachinePhase {
    fn from(phase: MachinePhase) -> Self {
        use proto::machine_phase::{Phase, PreparingShutdown, Running, Stopping};
        let number = |kind: ShutdownKind| i32::from(proto::ShutdownKind::from(kind));
        let phase = match phase {
            MachinePhase::Running => Phase::Running(Running {}),
            MachinePhase::PreparingShutdown { kind, deadline_ms } => {
                Phase::PreparingShutdown(PreparingShutdown { kind: number(kind), deadline_ms })
            }
            MachinePhase::Stopping { kind } => Phase::Stopping(Stopping { kind: number(kind) }),
        };
        Self { phase: Some(phase) }
    }
}

impl TryFrom<proto::MachinePhase> for MachinePhase {
    type Error = UnknownValue;

    fn try_from(message: proto::MachinePhase) -> Result<Self, UnknownValue> {
        use proto::machine_phase::{Phase, PreparingShutdown, Running, Stopping};
        Ok(match message.phase {
            Some(Phase::Running(Running {})) => Self::Running,
            Some(Phase::PreparingShutdown(PreparingShutdown { kind, deadline_ms })) => {
                Self::PreparingShutdown { kind: kind.try_into()?, deadline_ms }
            }
            Some(Phase::Stopping(Stopping { kind })) => Self::Stopping { kind: kind.try_into()? },
            None => return Err(UnknownValue(0, "phase of the machine")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_upkeep_are_kept() {
        let good = Upkeep::default();
        assert_eq!(good.problem(), None);
        assert_eq!(Upkeep { watchdog_seconds: None, ..good }.problem(), None);
        for (bad, field) in [
            (Upkeep { watchdog_seconds: Some(5), ..good }, "watchdogSeconds is 5"),
            (Upkeep { watchdog_seconds: Some(601), ..good }, "watchdogSeconds is 601"),
            (Upkeep { log_file_bytes: 1, ..good }, "logFileBytes is 1"),
            (Upkeep { log_files: 1, ..good }, "logFiles is 1"),
            (Upkeep { log_files: 17, ..good }, "logFiles is 17"),
        ] {
            let problem = bad.problem().unwrap();
            assert!(problem.starts_with(field), "{problem}");
        }
    }

    #[test]
    fn phases_survive_the_wire() {
        for kind in [ShutdownKind::Reboot, ShutdownKind::PowerOff, ShutdownKind::Halt] {
            for phase in [
                MachinePhase::Running,
                MachinePhase::PreparingShutdown { kind, deadline_ms: 77 },
                MachinePhase::Stopping { kind },
            ] {
                assert_eq!(MachinePhase::try_from(proto::MachinePhase::from(phase)), Ok(phase));
            }
        }
        assert!(MachinePhase::try_from(proto::MachinePhase { phase: None }).is_err());
        assert!(ShutdownKind::try_from(0).is_err());
        assert!(ProbeKind::try_from(9).is_err());
    }
}
