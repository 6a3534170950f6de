//! `MachinePool`: what the machines that a selector picks have in common.

mod rollout;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::core::{ParseExpressionError, Selector, SelectorExt as _};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::MachineSpec;

pub use self::rollout::{MaxUnavailable, Rollout, RolloutFailure, RolloutStatus};

/// What the machines of a pool have in common.
#[allow(clippy::duplicated_attributes, reason = "columns have types, and several may be of one")]
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "garboard.dev",
    version = "v1alpha1",
    kind = "MachinePool",
    plural = "machinepools",
    singular = "machinepool",
    shortname = "gmp",
    category = "garboard",
    status = "MachinePoolStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Machines that are configured alike: a selector picks them by their labels, a template configures them.",
    printcolumn(name = "Machines", type_ = "integer", json_path = ".status.machines"),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.updatedMachines",
        description = "Machines that follow the newest template"
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyMachines"),
    printcolumn(
        name = "Rollout",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        description = "How far the newest template is"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MachinePoolSpec {
    /// Labels of the Machines that belong to the pool. A Machine belongs to one pool: one that two of them pick keeps the
    /// configuration that it has, and says so.
    pub selector: LabelSelector,
    /// What its machines are.
    #[serde(default)]
    pub template: MachineTemplate,
    /// How changes of the template reach them.
    #[serde(default)]
    pub rollout: Rollout,
}

/// What the machines of a pool are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineTemplate {
    /// Their settings. Those of the Cluster's `machines` count less, those of a Machine itself count more; a list counts as a whole,
    /// a mapping entry by entry.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!has(self.hostname) && !has(self.role) && !has(self.join)")
        .message("hostname, role and join belong to one machine: declare them in the Machine"))]
    pub spec: MachineSpec,
}

/// What the machines of a pool have reached.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachinePoolStatus {
    /// The generation of the declaration that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What holds of the pool: Ready, when every machine follows the newest template and is Ready. Its reason tells how the rollout is:
    /// Updated, Updating, Paused, Stopped, NotReady, NoMachines or Invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How many machines belong to it; those that are deleted do no more.
    #[serde(default)]
    pub machines: u32,
    /// How many of them follow the newest template.
    #[serde(default)]
    pub updated_machines: u32,
    /// How many of them are Ready, and so are their nodes.
    #[serde(default)]
    pub ready_machines: u32,
    /// How far the newest template has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
}

impl MachinePool {
    /// Its selector in a form that can be asked.
    ///
    /// # Errors
    /// What is wrong with one of its expressions.
    pub fn selector(&self) -> Result<Selector, ParseExpressionError> {
        self.spec.selector.clone().try_into()
    }

    /// Whether it picks a machine with these labels; a selector that is not valid picks none.
    pub fn picks(&self, labels: &BTreeMap<String, String>) -> bool {
        self.picker()(labels)
    }

    /// [`Self::picks`] for many machines: the selector is read once.
    pub fn picker(&self) -> impl Fn(&BTreeMap<String, String>) -> bool + use<> {
        let selector = self.selector().ok();
        move |labels| selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}
