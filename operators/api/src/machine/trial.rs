//! Trials of changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PoolReference;
use crate::types::{HOST, LABEL};

/// How changes of a machine's configuration prove themselves. What worked before a change (the default gateway, name servers,
/// time servers, the API server, other nodes, each service, and the probes here) must work with it in time, or the machine returns to the
/// configuration before it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineTrial {
    /// Time in which a change has to prove itself, seconds. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 86400))]
    pub deadline_seconds: Option<u32>,
    /// What else must work, if it did before the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub probes: Vec<TrialProbe>,
}

impl MachineTrial {
    /// Time in which a change has to prove itself, seconds.
    pub fn deadline_seconds(&self) -> u32 {
        self.deadline_seconds.unwrap_or(300)
    }
}

/// Something that the machine must be able to do.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialProbe {
    /// A name for people: one DNS label.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub name: String,
    /// A server to which it must be able to connect.
    pub tcp: TcpServer,
}

/// A server that takes TCP connections.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpServer {
    /// Its address, or a DNS name.
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST))]
    pub host: String,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// The latest change of a machine's configuration and how it proves itself.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialStatus {
    /// Whether it is still to prove itself, has, or has failed.
    pub state: TrialState,
    /// The pool whose template is a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReference>,
    /// When it began, or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When the machine returns to the configuration before it, unless it has proved itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// What must work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// What of that does not, or did not when it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["probe"]))]
    pub failing: Vec<TrialFailure>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the services that did not serve said last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// How far a change is.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrialState {
    /// It is in force and has yet to prove itself.
    Running,
    /// It has proved itself.
    Proved,
    /// The machine has returned to the configuration before it.
    Failed,
}

/// Something that does not work.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialFailure {
    /// What.
    pub probe: String,
    /// Why.
    pub message: String,
}
