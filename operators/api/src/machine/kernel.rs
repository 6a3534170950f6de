//! Kernel of a machine.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::{MODULE, texts_schema};

/// Settings of a machine's kernel.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineKernel {
    /// Parameters by their names, such as `net.core.somaxconn: "4096"`. One that is changed on the machine is set again within seconds;
    /// one that is taken out of here gets back the value that it had before. What Garboard or kubelet rely on cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "sysctls_schema")]
    pub sysctls: BTreeMap<String, String>,
    /// Modules that are loaded in any case, with those that they need. One that is taken out of here stays until the machine restarts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64), regex(pattern = MODULE)))]
    pub modules: Vec<String>,
}

/// Kernel parameters that are not the user's to change, and why.
pub(crate) const KEPT_SYSCTLS: [(&str, &str); 12] = [
    ("kernel.core_pattern", "it names a program that the kernel runs as root"),
    ("kernel.hotplug", "it names a program that the kernel runs as root"),
    ("kernel.modprobe", "it names a program that the kernel runs as root"),
    ("kernel.poweroff_cmd", "it names a program that the kernel runs as root"),
    ("kernel.modules_disabled", "it cannot be taken back, and drivers that are needed later could not be loaded"),
    ("kernel.kexec_load_disabled", "it cannot be taken back"),
    ("kernel.panic", "kubelet relies on it"),
    ("kernel.panic_on_oops", "kubelet relies on it"),
    ("vm.overcommit_memory", "kubelet relies on it"),
    ("vm.panic_on_oom", "kubelet relies on it"),
    ("net.ipv4.ip_forward", "pods have no network without it"),
    ("net.ipv6.conf.all.forwarding", "pods have no network without it"),
];

fn sysctls_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let kept = KEPT_SYSCTLS.map(|(name, _)| name);
    texts_schema(
        128,
        256,
        &kept,
        "sysctls has a kernel parameter that is not to be changed, because the machine relies on it",
    )
}
