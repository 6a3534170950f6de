//! `EtcdMember`: the part that one control-plane machine has in the cluster's store.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::HTTPS_URL;

/// What a member is declared to be.
#[allow(clippy::duplicated_attributes, reason = "columns have types, and several may be of one")]
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "garboard.dev",
    version = "v1alpha1",
    kind = "EtcdMember",
    plural = "etcdmembers",
    singular = "etcdmember",
    shortname = "gem",
    category = "garboard",
    status = "EtcdMemberStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "The member of etcd that a control-plane machine runs. Its name is that of the machine, which makes it and keeps it.",
    printcolumn(name = "Role", type_ = "string", json_path = ".status.role"),
    printcolumn(name = "Healthy", type_ = "string", json_path = ".status.conditions[?(@.type=='Healthy')].status"),
    printcolumn(name = "Leader", type_ = "boolean", json_path = ".status.leader"),
    printcolumn(
        name = "Size",
        type_ = "integer",
        json_path = ".status.databaseMebibytes",
        description = "Of its database, MiB"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMemberSpec {
    /// Where the other members reach it. The machine keeps it.
    #[serde(rename = "peerURL")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HTTPS_URL))]
    pub peer_url: String,
    /// Whether it is to leave: it is taken out of the cluster's store as soon as that is safe, and its machine runs no part of the control
    /// plane any more. The last member does not leave. Deleting the Machine does this and the rest. It cannot be taken back.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("leaving cannot be taken back"))]
    pub leave: bool,
    /// Whether the machine has the data of a member, which belong to one store only: when the store was made anew without it, it does not
    /// come back by itself. The machine keeps it.
    #[serde(default)]
    pub joined: bool,
}

/// What a member may do.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EtcdRole {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    Learner,
    #[allow(missing_docs, reason = "as above")]
    Voter,
    #[allow(missing_docs, reason = "as above")]
    Left,
}

/// What a member is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMemberStatus {
    /// What holds of it: Joined, Healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How etcd names it, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A Learner receives everything and does not count yet, a Voter counts for the majority, and what has Left does neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<EtcdRole>,
    /// The members, by name, with which it has begun, and where they were reached.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub initial_cluster: BTreeMap<String, String>,
    /// Whether it leads the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<bool>,
    /// Version of etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Size of its database, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_mebibytes: Option<i64>,
    /// What of that is in use, MiB; the rest is given back by defragmentation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_mebibytes: Option<i64>,
    /// Alarms that etcd has raised about it, such as NOSPACE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// When it was told last to give back what its database does not use. One member is told at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defragmentation_due: Option<Time>,
    /// What it was told that it has done last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defragmented: Option<Time>,
}

impl EtcdMember {
    /// What it is in etcd, as far as that was told.
    pub fn role(&self) -> Option<EtcdRole> {
        self.status.as_ref().and_then(|status| status.role)
    }

    /// Whether etcd has it, as a learner or a voter.
    pub fn is_taken_in(&self) -> bool {
        matches!(self.role(), Some(EtcdRole::Learner | EtcdRole::Voter))
    }
}
