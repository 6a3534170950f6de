//! The first stage, step by step.

pub mod devices;
mod handover;
mod report;
mod root;

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use garboard_sys::kmsg::Level;
use garboard_sys::mount::{Mount, MountError, MountFlags};
use garboard_sys::verity::{RootHash, VerityError};
use garboard_sys::{block, clock, dm, gpt, modules, power, uevent};

use crate::boot::{BootFacts, Mark};
use report::Report;

/// How long a disk may take to appear: USB sticks and storage controllers of servers need tens of seconds.
const ROOT_DEADLINE: Duration = Duration::from_secs(60);

/// How long the words of a failure stay on the screen.
const READING_TIME: Duration = Duration::from_secs(30);

/// Where the root is mounted before it becomes `/`.
const SYSROOT: &str = "/sysroot";

const RESTRICTED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The kernel's own file systems.
const MOUNTS: [Mount<'static>; 4] = [
    Mount { source: "proc", target: "/proc", fs_type: "proc", flags: RESTRICTED, data: "" },
    Mount { source: "sysfs", target: "/sys", fs_type: "sysfs", flags: RESTRICTED, data: "" },
    Mount {
        source: "devtmpfs",
        target: "/dev",
        fs_type: "devtmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "mode=0755",
    },
    Mount {
        source: "tmpfs",
        target: "/run",
        fs_type: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=0755",
    },
];

/// Why the machine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FirstStageError {
    /// A file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel was started without a root hash.
    #[error("the kernel's command line has no roothash=")]
    NoRootHash,
    /// Devices could not be watched.
    #[error(transparent)]
    Uevent(#[from] uevent::UeventError),
    /// Devices could not be listed.
    #[error(transparent)]
    Block(#[from] block::BlockError),
    /// Waiting for devices failed.
    #[error("cannot wait for devices")]
    Wait(#[source] std::io::Error),
    /// The module index is damaged.
    #[error(transparent)]
    Modules(#[from] modules::ModuleError),
    /// No disk has the root.
    #[error("no disk has the partitions of root hash {root} ({uuid} and its hash tree); {seen}")]
    RootNotFound {
        /// The root hash.
        root: RootHash,
        /// The data partition's UUID.
        uuid: gpt::Guid,
        /// The disks that were looked at.
        seen: String,
    },
    /// The hash tree is not the right one.
    #[error("the root in {device} is not what was signed and booted")]
    Verity {
        /// The hash partition.
        device: PathBuf,
        /// What is wrong with it.
        #[source]
        source: VerityError,
    },
    /// The data partition is smaller than the hash tree says.
    #[error("{device} is smaller than its hash tree says")]
    RootTooSmall {
        /// The data partition.
        device: PathBuf,
    },
    /// A partition could not be read.
    #[error("cannot read {device}")]
    Read {
        /// The partition.
        device: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The verified device could not be made.
    #[error(transparent)]
    Mapper(#[from] dm::DmError),
    /// The hand-over failed.
    #[error("cannot {step}")]
    HandOver {
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl FirstStageError {
    /// What a person in front of the machine can do.
    fn advice(&self) -> &'static str {
        match self {
            Self::NoRootHash => "Start the machine from a Garboard boot entry; its kernel carries the root hash.",
            Self::RootNotFound { .. } => {
                "Check that the disk or stick is connected and shown by the firmware, and that its controller is in a mode with a Linux driver."
            }
            Self::Verity { .. } | Self::RootTooSmall { .. } => {
                "The disk's content was changed or is incomplete. Start the other slot in the boot menu, or write the image again."
            }
            Self::Read { .. } => {
                "The disk reports errors. Check its cables and health, or write the image to another one."
            }
            Self::Mount(_)
            | Self::Uevent(_)
            | Self::Block(_)
            | Self::Wait(_)
            | Self::Modules(_)
            | Self::Mapper(_)
            | Self::HandOver { .. } => "Start the other slot in the boot menu. The kernel's messages above say more.",
        }
    }
}

/// Runs the first stage as PID 1. Returns only when not even a restart is possible; the kernel then panics.
pub fn run() {
    let mut report = Report::default();
    let failure = match first_stage(&mut report) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    report.failure(&failure, failure.advice(), READING_TIME);
    std::thread::sleep(READING_TIME);
    let Err(error) = power::change(power::Power::Reboot);
    report.log(Level::Emergency, &error.to_string());
}

fn first_stage(report: &mut Report) -> Result<Infallible, FirstStageError> {
    let started = mark("firstStage");
    MOUNTS.iter().try_for_each(|mount| mount.apply_over())?;
    report.open();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let root = root_hash(&command_line)?;
    report.log(Level::Info, &format!("looking for the root with hash {root}"));
    let kernel_helper = devices::KernelHelper::take_over();
    let found = devices::find_root(root, ROOT_DEADLINE, report)?;
    let found_at = mark("rootFound");
    let device = root::verified_device(root, &found)?;
    root::mount(&device, SYSROOT)?;
    report.log(Level::Info, &format!("root {} on {} verified and mounted", found.slot, found.disk.display()));
    kernel_helper.give_back();
    let facts = BootFacts {
        root_hash: root.to_string(),
        version: found.slot.strip_prefix("root-").unwrap_or(&found.slot).to_owned(),
        slot: found.slot,
        disk: found.disk.display().to_string(),
        root_device: found.data.display().to_string(),
        verity_device: found.hash.display().to_string(),
        marks: vec![started, found_at, mark("rootMounted")],
    };
    handover::run(SYSROOT, &facts)
}

fn mark(name: &str) -> Mark {
    let monotonic_us = u64::try_from(clock::monotonic().as_micros()).unwrap_or(u64::MAX);
    Mark { name: name.to_owned(), monotonic_us }
}

/// The last `roothash=` counts, as for the kernel's own parameters.
fn root_hash(command_line: &str) -> Result<RootHash, FirstStageError> {
    let text = command_line.split_whitespace().rev().find_map(|word| word.strip_prefix("roothash="));
    let text = text.ok_or(FirstStageError::NoRootHash)?;
    text.parse().map_err(|source| FirstStageError::Verity { device: "/proc/cmdline".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_root_hash_counts() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let found = root_hash(&format!("console=ttyS0 roothash={a} quiet roothash={b}\n")).unwrap();
        assert_eq!(found.to_string(), b);
    }

    #[test]
    fn missing_and_broken_root_hashes_are_told() {
        assert!(matches!(root_hash("console=tty0 xroothash=1"), Err(FirstStageError::NoRootHash)));
        assert!(matches!(root_hash("roothash=12"), Err(FirstStageError::Verity { .. })));
    }
}
