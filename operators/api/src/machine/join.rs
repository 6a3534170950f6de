//! What a machine is for, and the cluster that it joins.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::Endpoint;
use crate::types::PublicKeyPin;

/// What a machine is for.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MachineRole {
    #[default]
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    ControlPlane,
    #[allow(missing_docs, reason = "as above")]
    Worker,
}

/// The cluster that a machine joins. `garboardctl join` writes it, and beside it a Secret with the one-time token by which the machine is
/// let in.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineJoin {
    /// Where the Kubernetes API of the cluster is reached when the machine knows none of its servers yet; the first that answers counts.
    #[schemars(length(min = 1, max = 8))]
    pub endpoints: Vec<Endpoint>,
    /// SHA-256 of the public key of the cluster's authority (`status.caPin` of the Cluster): the machine talks to no other cluster.
    pub ca_pin: PublicKeyPin,
}
