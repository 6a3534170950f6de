//! What a machine is for, and the cluster that it joins.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::{Access, Endpoint};
use crate::types::{HOST, MacAddress, PublicKeyPin, UUID};

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
/// let in; or the cluster itself hands the Machine to one that waits.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.waiting) || (has(self.endpoints) && has(self.caPin))")
    .message("say with `waiting` which machine that waits the cluster is to hand this to, or let `garboardctl join` write `endpoints` and `caPin`"))]
pub struct MachineJoin {
    /// Where the Kubernetes API of the cluster is reached when the machine knows none of its servers yet; the first that answers counts.
    /// The cluster fills it in for a machine that waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub endpoints: Vec<Endpoint>,
    /// SHA-256 of the public key of the cluster's authority (`status.caPin` of the Cluster): the machine talks to no other cluster.
    /// The cluster fills it in for a machine that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pin: Option<PublicKeyPin>,
    /// Who may use the machine API until the machine knows its cluster, whose own list counts from then on: to ask a machine that has not
    /// joined why, and to give it another token. `garboardctl join` writes the cluster's list, and the cluster fills it in for a machine
    /// that waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub access: Vec<Access>,
    /// The machine that this is for, which was started without manifests and waits: the cluster hands this Machine to it, with a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingMachine>,
}

/// A machine that waits to be told what it should be. It is known by its key or its TPM, which it proves, or by what its hardware says;
/// whoever is on a link of the control plane can say the latter, so prefer a key where that matters.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.fingerprint) || has(self.endorsementKey) || has(self.macAddress) || has(self.serialNumber) || has(self.systemUUID)")
        .message("say by what the machine is known: fingerprint, endorsementKey, macAddress, serialNumber or systemUUID"),
    validation = Rule::new("!has(self.host) || has(self.fingerprint)")
        .message("a machine that is reached at its `host` is known by its `fingerprint`"),
    validation = Rule::new("!has(self.port) || has(self.host)")
        .message("`port` is the port at `host`")
)]
pub struct WaitingMachine {
    /// Its address, as its console shows it, or a DNS name. Default: it is looked for on the links of the control-plane machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST))]
    pub host: Option<String>,
    /// The port of its machine API. Default: 7443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The key that its console shows: the SHA-256 of its public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<PublicKeyPin>,
    /// The SHA-256 of the public endorsement key of its TPM: that on P-256, which the TPM's vendor certifies, in the form of a certificate
    /// (`SubjectPublicKeyInfo`, DER). `garboardctl machines --waiting -o json` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement_key: Option<PublicKeyPin>,
    /// The hardware address of any of its links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<MacAddress>,
    /// The serial number that its firmware gives (SMBIOS type 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub serial_number: Option<String>,
    /// The UUID that its firmware gives (SMBIOS type 1), in lower case.
    #[serde(default, rename = "systemUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 36, max = 36), regex(pattern = UUID))]
    pub system_uuid: Option<String>,
}
