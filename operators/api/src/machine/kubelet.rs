//! Node of a machine.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{QUANTITY, QUANTITY_OR_PERCENT};

/// Settings of a machine's node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.shutdownGracePeriodCriticalPodsSeconds) || !has(self.shutdownGracePeriodSeconds) \
        || self.shutdownGracePeriodCriticalPodsSeconds <= self.shutdownGracePeriodSeconds")
    .message("shutdownGracePeriodCriticalPodsSeconds is a part of shutdownGracePeriodSeconds and cannot be longer"))]
pub struct MachineKubelet {
    /// Labels that the node has in any case. Others' labels stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_labels: BTreeMap<String, String>,
    /// Taints that the node has in any case, so that only pods which tolerate them run there. Others' taints stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key", "effect"])
    )]
    pub taints: Vec<Taint>,
    /// Resources that are kept from pods for the parts of Kubernetes: cpu, memory, ephemeral-storage and pid, such as `memory: 1Gi`.
    /// Default: by the machine's memory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "reserved_schema")]
    pub kube_reserved: BTreeMap<String, String>,
    /// Resources that are kept from pods for the rest of the machine: cpu, memory, ephemeral-storage and pid.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "reserved_schema")]
    pub system_reserved: BTreeMap<String, String>,
    /// What must be left of a resource before pods are evicted, as an amount or in percent: memory.available, nodefs.available,
    /// nodefs.inodesFree, imagefs.available, imagefs.inodesFree and pid.available, such as `nodefs.available: 5%`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "eviction_schema")]
    pub eviction_hard: BTreeMap<String, String>,
    /// Feature gates of Kubernetes for kubelet, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub feature_gates: BTreeMap<String, bool>,
    /// Most pods at a time. A node has 253 addresses for pods. Default: 110.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 250))]
    pub max_pods: Option<u32>,
    /// Time that pods have to end when the machine shuts down, seconds: at most 570, as the machine waits ten minutes for them.
    /// Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 570))]
    pub shutdown_grace_period_seconds: Option<u32>,
    /// The last part of that time, which is kept for critical pods, seconds. Default: 10, or all of a shorter time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 570))]
    pub shutdown_grace_period_critical_pods_seconds: Option<u32>,
}

/// What keeps pods away from a node unless they tolerate it.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Its key, as that of a label.
    #[schemars(length(min = 1, max = 316))]
    pub key: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// What becomes of pods that do not tolerate it: NoSchedule, PreferNoSchedule or NoExecute.
    pub effect: TaintEffect,
}

/// What becomes of pods that do not tolerate a taint.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaintEffect {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    NoSchedule,
    #[allow(missing_docs, reason = "as above")]
    PreferNoSchedule,
    #[allow(missing_docs, reason = "as above")]
    NoExecute,
}

/// Resources that can be reserved.
pub(crate) const RESERVABLE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];

/// What evictions can depend on.
pub(crate) const EVICTION_SIGNALS: [&str; 6] = [
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
];

fn reserved_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    amounts_schema(&RESERVABLE, QUANTITY)
}

fn eviction_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    amounts_schema(&EVICTION_SIGNALS, QUANTITY_OR_PERCENT)
}

/// Amounts by the names of what they are amounts of.
fn amounts_schema(names: &[&str], pattern: &str) -> schemars::Schema {
    let listed = names.join(", ");
    let rule = format!("self.all(name, name in {names:?})");
    schemars::json_schema!({
        "type": "object",
        "maxProperties": names.len(),
        "additionalProperties": { "type": "string", "maxLength": 32, "pattern": pattern },
        "x-kubernetes-validations": [{ "rule": rule, "message": format!("there are {listed}") }],
    })
}

impl MachineKubelet {
    /// Most pods at a time.
    pub fn max_pods(&self) -> u32 {
        self.max_pods.unwrap_or(110)
    }

    /// Time that pods have to end when the machine shuts down, seconds.
    pub fn shutdown_grace_period_seconds(&self) -> u32 {
        self.shutdown_grace_period_seconds.unwrap_or(30)
    }

    /// The last part of that time, which is kept for critical pods, seconds.
    pub fn shutdown_grace_period_critical_pods_seconds(&self) -> u32 {
        self.shutdown_grace_period_critical_pods_seconds.unwrap_or(10).min(self.shutdown_grace_period_seconds())
    }
}
