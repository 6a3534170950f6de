//! What the first stage found and tells PID 1: `/run/garboard/boot.json`.

use serde::{Deserialize, Serialize};

/// The file, in the tmpfs that both stages share.
pub const PATH: &str = "/run/garboard/boot.json";

/// Where this boot's root lies and how it got there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootFacts {
    /// The root hash that was booted, 64 hexadecimal digits.
    pub root_hash: String,
    /// The label of the root's partition, `root-VERSION`.
    pub slot: String,
    /// The version in that label.
    pub version: String,
    /// The disk's node, such as `/dev/vda`.
    pub disk: String,
    /// The node of the root's partition (on a CD: of what stands for it).
    pub root_device: String,
    /// The node of the hash tree's partition.
    pub verity_device: String,
    /// When what was reached, oldest first.
    pub marks: Vec<Mark>,
}

/// A moment of the boot path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mark {
    /// What was reached.
    pub name: String,
    /// When: microseconds of `CLOCK_MONOTONIC`, which starts with the kernel.
    pub monotonic_us: u64,
}
